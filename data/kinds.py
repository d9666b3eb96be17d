"""What a file or a record is that should be another: told by its first bytes, and how to mend it."""

from __future__ import annotations

import re

__all__ = ["HEAD", "other_kind"]

# How many bytes are looked at: a tar says what it is at 257.
HEAD = 512

_DOWNLOAD = "most likely the answer of a failed download; download the file again"
# A length of protobuf, and a field 1 of so many bytes that holds a short text.
_LENGTH = rb"[\x80-\xff]*[\x00-\x7f]"
_NAME = rb"\x0a(?P<length>[\x01-\x7f])(?P<name>[\x20-\x7e]+?)\x12"
# Most magic numbers are in the lists of the `file` program; the last ones are protobuf messages as they begin.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (rb"\x1f\x8b", "gzip-compressed", "gunzip it"),
    (rb"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it with unzstd"),
    (rb"BZh[1-9]", "bzip2-compressed", "unpack it with bunzip2"),
    (rb"\xfd7zXZ\x00", "xz-compressed", "unpack it with unxz"),
    (rb"\x04\x22\x4d\x18", "lz4-compressed", "unpack it with unlz4"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (rb"PK\x03\x04.{26}[^\x00]*?/(?:data\.pkl|\.format_version|byteorder)", "a checkpoint", "give it as one"),
    (rb"PK\x03\x04", "a zip archive", "unpack it"),
    (rb".{257}ustar", "a tar archive", "unpack it"),
    (rb"PAR1", "a shard of a scene store (Parquet)", "give the folder of the store as --scenarios"),
    (rb"\x00\x05\x16\x07", "a sidecar that macOS writes", "delete the files whose names begin with ._"),
    (rb"\x89HDF", "an HDF5 file", "give the files of the dataset itself"),
    (rb"\x93NUMPY", "a NumPy array", "give the files of the dataset itself"),
    (rb"\x80[\x02-\x05]", "a Python pickle", "give the files of the dataset itself"),
    (rb"version https://git-lfs", "a Git LFS pointer", "fetch the file itself with git lfs pull"),
    (rb"\s*<(?i:!doctype html|html|head|body)", "an HTML page", _DOWNLOAD),
    (rb"\s*<\?xml|\s*<Error>", "an XML text", _DOWNLOAD),
    (rb"\s*[{\[]\s*[\"{}\[\]]", "a JSON text", _DOWNLOAD),
    (
        rb"(?:\x0a" + _LENGTH + rb"){1,2}\x0a.\d+_\d+_\d+_\d+_\d+",
        "a frame of another Waymo dataset (perception or end-to-end driving)",
        "download the Motion Dataset, its folder scenario/",
    ),
    (
        rb"\x0a" + _LENGTH + rb"\x0a" + _LENGTH + _NAME,
        "a tf.Example",
        "download the folder scenario/ of the dataset, not tf_example/",
    ),
    (rb"(?:\x0a" + _LENGTH + rb")?" + _NAME, "rollouts of a scenario", "give them as --rollouts"),
)  # fmt: skip
_PATTERNS = [(re.compile(pattern, re.DOTALL), what, mend) for pattern, what, mend in _KINDS]


def other_kind(head: bytes, expected: str) -> str | None:
    """Name a kind that is known and not the expected one, as ``gzip-compressed, not a TFRecord: gunzip it``.

    Args:
        head: the first ``HEAD`` bytes, or fewer where there are no more.
        expected: what should be there, with its article.

    Returns:
        One line, or None where the bytes are of no known kind.
    """
    if not head:
        return f"empty (0 bytes), not {expected}: download it again, or remove it"
    for pattern, what, mend in _PATTERNS:
        found = pattern.match(head)
        if found is None:
            continue
        if "name" in pattern.groupindex and found["length"][0] != len(found["name"]):
            continue
        return f"{what}, not {expected}: {mend}"
    if len(head) >= 16 and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return f"a text, not {expected}: {_DOWNLOAD}"
    return None

"""Receipts of finished files: their content and source, so that no file is made twice.

A file with a matching receipt is not made again; a file without one counts as missing. The receipt is written after
its file, and both are written atomically (``data.files``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from data.files import checksum, read_json, write_json, write_text
from data.places import is_remote

RECEIPTS = ".receipts"
# The file of ``write_sums``.
SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Receipt:
    """Content and source of a finished file.

    Attributes:
        bytes, sha256: of its content. source: text that identifies its inputs. items: number of items in it.
    """

    bytes: int
    sha256: str
    source: str
    items: int


def receipt_path(path: Path) -> Path:
    """Path of the receipt, in a hidden folder, so that programs that list files by name do not see it."""
    return path.parent / RECEIPTS / f"{path.name}.json"


def write_receipt(path: Path, source: str, items: int) -> Receipt:
    """Read a finished file back and write its receipt."""
    receipt = Receipt(bytes=path.stat().st_size, sha256=checksum(path), source=source, items=items)
    write_json(receipt_path(path), asdict(receipt))
    return receipt


def read_receipt(path: Path) -> Receipt | None:
    """The receipt of an existing file of unchanged size; None otherwise."""
    try:
        receipt = Receipt(**read_json(receipt_path(path)))
        return receipt if path.stat().st_size == receipt.bytes else None
    except (OSError, ValueError, TypeError):
        return None


def accepted(path: Path, source: str | Callable[[], str]) -> Receipt | None:
    """The receipt of an unchanged file that was made from ``source``; None otherwise.

    The checksum of a local file is compared, but only the size of a URL.

    Args:
        path: the file. source: the expected source, or a function for it, called only where there is a receipt.
    """
    receipt = read_receipt(path)
    if receipt is None or receipt.source != (source if isinstance(source, str) else source()):
        return None
    try:
        return receipt if is_remote(path) or checksum(path) == receipt.sha256 else None
    except OSError:
        return None


def write_sums(path: Path, receipts: Mapping[str, Receipt]) -> None:
    """List finished files by name in the format of ``sha256sum --check``."""
    write_text(path, "".join(f"{receipt.sha256}  {name}\n" for name, receipt in sorted(receipts.items())))

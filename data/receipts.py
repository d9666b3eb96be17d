"""Receipts: near a finished file, what it is and what it was made of, so that work is done exactly once.

A file with a receipt that fits is never made again; without one it counts as not there, whoever died when. The
receipt is written after its file, and both appear at once or not at all (``data.files``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from data.checksums import checksum
from data.files import read_json, write_json, write_text
from data.places import is_remote

__all__ = ["Receipt", "accepted", "read_receipt", "receipt_path", "write_receipt", "write_sums"]

_FOLDER = ".receipts"


@dataclass(frozen=True)
class Receipt:
    """What a finished file is.

    Attributes:
        bytes, sha256: of its content. source: of what it was made, in the words of whoever made it.
        items: what it holds, in the maker's count.
    """

    bytes: int
    sha256: str
    source: str
    items: int


def receipt_path(path: Path) -> Path:
    """Where the receipt of a file is. Not beside it, where a program that looks for files by name might find it."""
    return path.parent / _FOLDER / f"{path.name}.json"


def write_receipt(path: Path, source: str, items: int) -> Receipt:
    """Read a finished file back and write its receipt."""
    receipt = Receipt(bytes=path.stat().st_size, sha256=checksum(path), source=source, items=items)
    write_json(receipt_path(path), asdict(receipt))
    return receipt


def read_receipt(path: Path) -> Receipt | None:
    """The receipt of a file that is there and as long as it was; None otherwise."""
    try:
        receipt = Receipt(**read_json(receipt_path(path)))
        return receipt if path.stat().st_size == receipt.bytes else None
    except (OSError, ValueError, TypeError):
        return None


def accepted(path: Path, source: str | Callable[[], str]) -> Receipt | None:
    """The receipt of a file that is there, is what it was, and was made of ``source``; None otherwise.

    The content of a local file is compared. That of a URL is not fetched: its size must do.

    Args:
        path: the file. source: what it must have been made of, or what finds that out, at a cost.
    """
    receipt = read_receipt(path)
    if receipt is None or receipt.source != (source if isinstance(source, str) else source()):
        return None
    try:
        return receipt if is_remote(path) or checksum(path) == receipt.sha256 else None
    except OSError:
        return None


def write_sums(path: Path, receipts: Mapping[str, Receipt]) -> None:
    """List finished files, by name in the list's folder, in the format of ``sha256sum --check``."""
    write_text(path, "".join(f"{receipt.sha256}  {name}\n" for name, receipt in sorted(receipts.items())))

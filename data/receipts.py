"""Receipts: near a finished file, what it is and what it was made of, so that work is done exactly once.

A file with a receipt that fits is never made again; without one it counts as not there, whoever died when. The
receipt is written after its file, and both appear at once or not at all (``data.files``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from data.files import read_json, sha256_of, write_json, write_text
from data.places import is_remote

__all__ = ["Receipt", "accepted", "receipt_path", "write_receipt", "write_sums"]

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
    receipt = Receipt(bytes=path.stat().st_size, sha256=sha256_of(path), source=source, items=items)
    write_json(receipt_path(path), asdict(receipt))
    return receipt


def accepted(path: Path, source: str) -> Receipt | None:
    """The receipt of a file that is there, is what it was, and was made of ``source``; None otherwise.

    The content of a local file is compared. That of a URL is not fetched: its size must do.
    """
    try:
        receipt = Receipt(**read_json(receipt_path(path)))
        fits = receipt.source == source and path.stat().st_size == receipt.bytes
        return receipt if fits and (is_remote(path) or sha256_of(path) == receipt.sha256) else None
    except (OSError, ValueError, TypeError):
        return None


def write_sums(path: Path, receipts: Mapping[str, Receipt]) -> None:
    """List finished files, by name in the list's folder, in the format of ``sha256sum --check``."""
    write_text(path, "".join(f"{receipt.sha256}  {name}\n" for name, receipt in sorted(receipts.items())))

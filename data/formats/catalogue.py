"""The formats of scenarios that are read, and which of them files are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data.errors import UserError
from data.formats.gpudrive import GPUDRIVE
from data.formats.reader import Format
from data.formats.scenarionet import SCENARIONET
from data.formats.tfrecords import WOMD

AUTO = "auto"
FORMATS = {item.name: item for item in (WOMD, SCENARIONET, GPUDRIVE)}


def candidates(name: str) -> list[Format]:
    """The formats that ``--format`` allows.

    Raises:
        UserError: no such format.
    """
    if name != AUTO and name not in FORMATS:
        raise UserError(f"--format {name}: expected one of {', '.join([AUTO, *FORMATS])}")
    return list(FORMATS.values()) if name == AUTO else [FORMATS[name]]


def format_of(name: str, head: Callable[[], bytes], allowed: Sequence[Format]) -> Format:
    """The format of a file by its name, else by its first bytes, else the first one that is allowed."""
    if len(allowed) == 1:
        return allowed[0]
    by_name = [item for item in allowed if item.names.fullmatch(name)]
    return by_name[0] if by_name else next((item for item in allowed if item.heads(head())), allowed[0])

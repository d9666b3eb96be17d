"""Where SUMO's programs are, and running one of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from data.errors import UserError

__all__ = ["SumoError", "require_sumo", "run_tool", "sumo_home"]


class SumoError(RuntimeError):
    """A SUMO program refused its input; a world drawn from another seed may well be accepted."""


def sumo_home() -> Path:
    """Folder of the installed eclipse-sumo wheel."""
    try:
        import sumo
    except ImportError as error:
        raise UserError(
            "generated traffic needs the packages eclipse-sumo and libsumo: run `make setup`, or give real "
            "scenarios with DATA="
        ) from error
    return Path(sumo.SUMO_HOME)


def require_sumo() -> None:
    """Raise ``UserError`` where a part of SUMO is missing, before any work is started."""
    for name in ("netgenerate", "netconvert"):
        if not (sumo_home() / "bin" / name).is_file():
            raise UserError(f"eclipse-sumo at {sumo_home()} lacks bin/{name}: reinstall it with `make setup`")


def run_tool(name: str, arguments: Sequence[str], folder: Path) -> None:
    """Run a SUMO program in ``folder``.

    Raises:
        SumoError: it failed; the message ends with its last line of output.
    """
    home = sumo_home()
    done = subprocess.run(
        [str(home / "bin" / name), *arguments],
        cwd=folder,
        env={**os.environ, "SUMO_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("Error")] or ["no message"]
        raise SumoError(f"{name} failed ({done.returncode}): {lines[0]}")

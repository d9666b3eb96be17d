"""Resolve requirements.in, requirements-ray.in and requirements-dev.in in a fresh virtual environment and write the
pinned files.

    python scripts/lock_requirements.py

Packages that come with one build of torch only (CUDA libraries) stay out of the lock: pip takes them with torch.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_HEADER = "# Written by `make lock` from {source}: edit that file and run it again.\n"
# Belong to a build of torch, not to the project.
_WITH_TORCH = re.compile(r"(nvidia[-_]|cuda[-_]|triton)")


def _freeze(python: Path) -> list[str]:
    output = subprocess.run(
        [python, "-m", "pip", "freeze", "--all"], check=True, capture_output=True, text=True
    ).stdout
    lines = [re.sub(r"\+[\w.]+$", "", line) for line in output.splitlines()]
    return sorted(
        (line for line in lines if not _WITH_TORCH.match(line) and not line.startswith("pip==")), key=str.lower
    )


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        known: set[str] = set()
        for name in ("requirements", "requirements-ray", "requirements-dev"):
            subprocess.run([python, "-m", "pip", "install", "-q", "-r", _ROOT / f"{name}.in"], check=True)
            lines = [line for line in _freeze(python) if line not in known]
            known.update(lines)
            (_ROOT / f"{name}.txt").write_text(_HEADER.format(source=f"{name}.in") + "\n".join(lines) + "\n")
            print(f"{name}.txt: {len(lines)} packages", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

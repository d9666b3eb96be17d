"""On what a report was made, and from which code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["machine_facts", "source_commit"]

_ROOT = Path(__file__).resolve().parents[3]
_PACKAGES = ("torch", "lightning", "waymo-open-dataset-tf-2-12-0")


def _processor() -> str:
    """Model of the CPU, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def machine_facts() -> dict[str, str]:
    """Names and values for a table."""
    cores = os.cpu_count()
    facts = {"processor": f"{_processor()}, {cores} cores", "Python": platform.python_version()}
    if torch.cuda.is_available():
        facts["GPU"] = torch.cuda.get_device_name()
    return facts | {name: _version(name) for name in _PACKAGES}


def source_commit() -> str | None:
    """Commit of the source, with a note where files differ from it; None outside a git checkout."""
    try:
        asked = [
            subprocess.run(
                ["git", "-C", str(_ROOT), *words], capture_output=True, text=True, timeout=20, check=True
            )
            for words in (
                ["rev-parse", "--show-toplevel", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    top, commit = asked[0].stdout.split()
    # A checkout around this folder says nothing of this code.
    if Path(top).resolve() != _ROOT:
        return None
    return commit[:12] + (" with changes" if asked[1].stdout.strip() else "")

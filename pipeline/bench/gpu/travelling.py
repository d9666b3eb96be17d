"""Wheels of small packages for a bare machine. This module imports the standard library only."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

# Module to package: those that the machine must have, and those that are copied as wheels.
_NEEDED = {"torch": "torch", "numpy": "numpy", "pyarrow": "pyarrow", "scipy": "scipy"}
_TRAVELLING = {
    "PIL": "pillow",
    "google.protobuf": "protobuf",
    "lightning": "lightning",
    "lightning_utilities": "lightning-utilities",
    "packaging": "packaging",
    "shapely": "shapely",
    "tensorboardX": "tensorboardx",
    "torchmetrics": "torchmetrics",
    "tqdm": "tqdm",
    "yaml": "pyyaml",
}
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def missing_packages() -> list[str]:
    """Required packages that are not installed."""
    return [package for module, package in _NEEDED.items() if not _has(module)]


def fetch_wheels(folder: Path, python: str) -> int:
    """Download wheels for a version of Python on x86-64 Linux; returns pip's exit status."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    command += ["--python-version", python, "--implementation", "cp"]
    for platform in _PLATFORMS:
        command += ["--platform", platform]
    return subprocess.call([*command, *_TRAVELLING.values()])


def unpack(data: Path, site: Path) -> None:
    """Unpack the wheels of missing packages and append them to the import path of this process and its children.

    Args:
        data: prepared folder. site: empty folder to unpack to.
    """
    missing = tuple(f"{p.replace('-', '_')}-" for module, p in _TRAVELLING.items() if not _has(module))
    for wheel in sorted((data / "wheels").glob("*.whl")):
        if wheel.name.lower().startswith(missing):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
    behind = [str(site), str(data / "site")]
    sys.path += behind
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*([before] if before else []), *behind])

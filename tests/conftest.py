"""Fixtures shared by all tests: where real scenarios are, and small hand-made scenes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Two processes of the test runner share two cores; more threads each only make them wait for one another.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def womd() -> Path:
    """Folder with training/, validation/, testing/ of real scenarios, or a skip that says so."""
    folder = Path(os.environ.get("WOMD_DATA", Path(__file__).parents[2] / "shared" / "womd"))
    if not (folder / "validation").is_dir():
        pytest.skip(f"no real WOMD scenarios at {folder} (set WOMD_DATA): behaviour on real data not tested")
    return folder

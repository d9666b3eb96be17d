"""Fixtures shared by all tests: where real scenarios are, and small hand-made scenes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Two processes of the test runner share two cores; more threads each only make them wait for one another. Whoever
# gives OMP_NUM_THREADS wants to see whether something depends on it.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

# Tests are of CPUs, also on machines with a GPU, which devices named auto would take; give the variable to try it.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# The same examples in every run, so that a change fails for its own defects; HYPOTHESIS_PROFILE=explore looks for
# new ones. No deadlines, since how long an example takes depends on what else the machine does.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(scope="session")
def womd() -> Path:
    """Folder with training/, validation/, testing/ of real scenarios, or a skip that says so."""
    folder = Path(os.environ.get("WOMD_DATA", Path(__file__).parents[2] / "shared" / "womd"))
    if not (folder / "validation").is_dir():
        pytest.skip(f"no real WOMD scenarios at {folder} (set WOMD_DATA): behaviour on real data not tested")
    return folder

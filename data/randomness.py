"""Random numbers that belong to a scenario, whichever worker, order or batch it is simulated in."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["generator_for"]


def generator_for(seed: int, scenario_id: str) -> torch.Generator:
    """A function of (seed, scenario id) alone; on the CPU, so that every device draws the same."""
    digest = hashlib.sha256(f"{seed}/{scenario_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

"""Random numbers that belong to a scenario, whichever worker, order or batch it is simulated in."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["generator_for", "seed_for"]


def seed_for(seed: int, scenario_id: str) -> int:
    """A 63-bit seed from the run's seed and the scenario's id."""
    digest = hashlib.sha256(f"{seed}:{scenario_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator_for(seed: int, scenario_id: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by ``seed_for``."""
    return torch.Generator(device).manual_seed(seed_for(seed, scenario_id))

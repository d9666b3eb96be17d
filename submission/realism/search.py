"""Nearest of many, in blocks that fit into the memory of the device."""

from __future__ import annotations

import torch
from torch import Tensor

# On a CPU a block fits into the caches.
_CPU_BLOCK = 1 << 19
# A block of float32 takes this fraction of a GPU's memory; about six are held at once.
_GPU_FRACTION = 1 / 128


def block_elements(device: torch.device) -> int:
    """Elements of one block of pairwise tables."""
    if device.type != "cuda":
        return _CPU_BLOCK
    return int(torch.cuda.get_device_properties(device).total_memory * _GPU_FRACTION) // 4


def _root(squared: Tensor) -> Tensor:
    return squared.double().sqrt_().float()


def first_nearest(squared: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest distance [Q], and the first row with it, of squared distances [Q, N] float32.

    Distances are rounded to float32 as in ``norm``, which makes ties of squares that differ. No table of roots is
    computed for that: the squares with one root are at most three consecutive numbers.
    """
    least = squared.amin(1)
    second = torch.nextafter(least, torch.full_like(least, torch.inf))
    third = torch.nextafter(second, torch.full_like(least, torch.inf))
    distance, *others = _root(torch.stack((least, second, third)))
    limit = torch.where(others[0] == distance, torch.where(others[1] == distance, third, second), least)
    # Of several maxima, argmax gives the first.
    return distance, (squared <= limit.unsqueeze(1)).to(torch.uint8).argmax(1)

"""Seconds by phase of work that a GPU does later than it is asked to."""

from __future__ import annotations

import time

import torch

__all__ = ["Clock"]


class Clock:
    """Each lap names what was done since the one before; nothing waits until ``seconds`` is asked for.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self.lap("")

    def lap(self, phase: str) -> None:
        """What was done since the last lap was ``phase``."""
        if not self._on_gpu:
            self._marks.append((phase, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((phase, event))

    def seconds(self) -> dict[str, float]:
        """Of each phase."""
        if self._on_gpu:
            torch.cuda.synchronize()
        total: dict[str, float] = {}
        for (_, start), (phase, end) in zip(self._marks, self._marks[1:], strict=False):
            if isinstance(start, float) and isinstance(end, float):
                lasted = end - start
            else:
                assert isinstance(start, torch.cuda.Event)
                assert isinstance(end, torch.cuda.Event)
                lasted = start.elapsed_time(end) / 1000
            total[phase] = total.get(phase, 0.0) + lasted
        return total

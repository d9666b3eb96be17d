"""The reference as an agent: it drives token by token, and reads where others went as their nearest tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from data.scene import Scene
from data.tokenizer import apply_token, match_token
from models.reference.agent import PreparedScene, ReferenceAgent
from models.sampling import SamplingConfig, draw
from pipeline.agents.agent import Agent

# Rollouts times agents that are driven at once, to bound the memory. On a CPU larger batches are not faster.
_MAX_ROWS, MAX_ROWS_GPU = 1024, 8192


class ReferenceDriver(Agent):
    """A reference that drives; only the first 11 steps of a scene influence it.

    Args:
        sampling: how tokens are drawn; from the whole distribution by default.
    """

    def __init__(self, reference: ReferenceAgent, sampling: SamplingConfig | None = None) -> None:
        self.reference, self.sampling = reference, sampling or SamplingConfig()
        self.token_steps, self.device = reference.vocabulary.token_steps, reference.device
        self.joins_scenes = self.device.type != "cpu"
        self.max_rows = MAX_ROWS_GPU if self.joins_scenes else _MAX_ROWS

    @classmethod
    def from_checkpoint(
        cls,
        path: Path,
        sampling: SamplingConfig | None = None,
        device: torch.device | str = "cpu",
        compiled: bool = False,
    ) -> ReferenceDriver:
        """Load ``reference.ckpt``.

        Raises:
            UserError: not such a checkpoint.
        """
        return cls(ReferenceAgent.from_checkpoint(path, device, compiled), sampling)

    def prepare(self, *scenes: Scene) -> PreparedScene:
        return self.reference.prepare(*scenes)

    def start(self, prepared: PreparedScene, count: int, driven: Tensor | None = None) -> ReferenceDrive:
        return ReferenceDrive(self, prepared, count, driven)


class ReferenceDrive:
    """See ``Drive``. The reference assumes that everybody stays, and knows lights from before the start alone."""

    def __init__(self, agent: ReferenceDriver, prepared: PreparedScene, count: int, driven: Tensor | None) -> None:
        self._vocabulary, self._sampling = agent.reference.vocabulary, agent.sampling
        self._unrolling = agent.reference.unroll(prepared, count)
        self._driven = (
            torch.ones_like(prepared.inputs.agents.simulated) if driven is None else driven.to(agent.device)
        )
        self._driven = self._driven.expand(prepared.inputs.agents.types.shape).repeat_interleave(count, 0)
        self._others = (~self._driven).any(0).nonzero().flatten().tolist()
        self._tokens = torch.zeros(0)

    @torch.no_grad()
    def step(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        unrolling = self._unrolling
        self._tokens = draw(unrolling.logits(), uniform, unrolling.types, self._sampling)
        pose = apply_token(self._vocabulary, unrolling.pose, self._tokens, unrolling.types)
        return pose, torch.ones(pose.shape[:-1], dtype=torch.bool, device=pose.device)

    @torch.no_grad()
    def observe(
        self, pose: Tensor, present: Tensor | None = None, velocity: Tensor | None = None, red: Tensor | None = None
    ) -> None:
        tokens, rows = self._tokens, self._others
        if rows:
            before, types = self._unrolling.pose[:, rows], self._unrolling.types[:, rows]
            tokens = tokens.clone()
            nearest, _ = match_token(self._vocabulary, before, pose[:, rows, -1], types)
            tokens[:, rows] = torch.where(self._driven[:, rows], tokens[:, rows], nearest)
        self._unrolling.execute(tokens, pose)

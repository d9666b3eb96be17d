"""What a simulated agent is, and how one is made by name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Protocol

from torch import Tensor

from data.errors import UserError
from data.scene import Scene
from models.sampling import SamplingConfig

__all__ = ["AGENT_NAMES", "LEARNT", "SimAgent", "make_agent"]

AGENT_NAMES = ("log", "constant_velocity", "reference", "policy")
LEARNT = ("reference", "policy")


class SimAgent(Protocol):
    """Simulates all agents of a scene that an entry must simulate."""

    def rollouts(self, scene: Scene, count: int, seed: int) -> Tensor:
        """[R, A, 80, 4] float32 (x, y, z, heading; global) for the A agents of ``scene.simulated``, in order.

        Depends on the scene, ``count`` and ``seed`` alone.
        """
        ...


def make_agent(
    name: str,
    checkpoint: Path | None,
    sampling: SamplingConfig | None = None,
    device: str = "cpu",
    compiled: bool = False,
) -> SimAgent:
    """Make an agent.

    Args:
        name: one of ``AGENT_NAMES``. checkpoint: of a learnt agent.
        sampling: how a learnt agent draws its tokens. device: of a learnt agent.
        compiled: fuse a learnt agent's steps with torch.compile.

    Raises:
        UserError: unknown name, or no checkpoint for a learnt agent.
    """
    if name not in AGENT_NAMES:
        close = difflib.get_close_matches(name, AGENT_NAMES, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"--agent {name}: no such agent, expected one of {', '.join(AGENT_NAMES)}{hint}")
    if name in LEARNT and checkpoint is None:
        raise UserError(f"--agent {name} needs --checkpoint FILE")
    # Imported here: the baselines need no network code.
    if name == "reference":
        from models.reference.agent import ReferenceAgent

        assert checkpoint is not None
        return ReferenceAgent.from_checkpoint(checkpoint, sampling, device, compiled)
    if name == "policy":
        from pipeline.agents.policy_agent import PolicyAgent

        assert checkpoint is not None
        return PolicyAgent.from_checkpoint(checkpoint, sampling, device, compiled)
    from pipeline.agents.baselines import ConstantVelocity, LogReplay

    return LogReplay() if name == "log" else ConstantVelocity()

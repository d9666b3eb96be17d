"""Agents by name: a new one is imported and listed here."""

from __future__ import annotations

from pathlib import Path

from data.errors import UserError, expected
from models.checkpoints import checkpoint_kind
from models.policy import POLICY_KIND
from models.sampling import SamplingConfig
from pipeline.agents.agent import Agent
from pipeline.agents.baselines import ConstantVelocity, LogReplay
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.agents.reference_agent import ReferenceDriver

_BASELINES: dict[str, type[Agent]] = {"log": LogReplay, "constant_velocity": ConstantVelocity}
# Read from a checkpoint.
_LEARNT: dict[str, type[PolicyAgent | ReferenceDriver]] = {"reference": ReferenceDriver, "policy": PolicyAgent}
AGENT_NAMES, LEARNT = (*_BASELINES, *_LEARNT), tuple(_LEARNT)


def make_agent(
    name: str,
    checkpoint: Path | None,
    sampling: SamplingConfig | None = None,
    device: str = "cpu",
    compiled: bool = False,
) -> Agent:
    """Make an agent.

    Args:
        name: one of ``AGENT_NAMES``. checkpoint: of a learnt agent.
        sampling: how a learnt agent draws its tokens. device: of a learnt agent.
        compiled: fuse a learnt agent's steps with torch.compile.

    Raises:
        UserError: unknown name, or no checkpoint for a learnt agent.
    """
    if name not in AGENT_NAMES:
        raise UserError(f"--agent {name}: no such agent, {expected(name, AGENT_NAMES)}")
    if name in _BASELINES:
        return _BASELINES[name]()
    if checkpoint is None:
        raise UserError(f"--agent {name} needs --checkpoint FILE")
    return _LEARNT[name].from_checkpoint(checkpoint, sampling, device, compiled)


def open_agent(checkpoint: Path, sampling: SamplingConfig | None = None, device: str = "cpu") -> Agent:
    """The policy or the reference of a checkpoint; arguments as of ``make_agent``.

    Raises:
        UserError: no such file, or not such a checkpoint.
    """
    kind = "policy" if checkpoint_kind(checkpoint) == POLICY_KIND else "reference"
    return make_agent(kind, checkpoint, sampling, device)

"""Everybody but the AV: the log, the reference, or a policy, in P copies of a scene, one for each planner.

Within a token nobody knows what the others are about to do: traffic decides from what has happened up to now, and
is told afterwards where the planner drove. All copies draw the same numbers, so that planners meet the same people.
Shape legend: P copies, A simulated agents, s steps of 0.1 s in a token.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from data.errors import UserError
from data.scene import CURRENT_INDEX, FUTURE_STEPS, Scene, generator_for
from data.tokenizer import apply_token, match_token, scene_origin
from models.checkpoints import checkpoint_kind
from models.policy import POLICY_KIND
from models.reference.agent import ReferenceAgent
from models.sampling import SamplingConfig, draw
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.simulator.step import controlled_agents, decisions
from pipeline.simulator.world import repeat_world

__all__ = ["LogTraffic", "ModelTraffic", "Traffic", "Underway", "load_traffic"]


class Underway(Protocol):
    """Traffic in P copies of a scene, moving."""

    def decide(self) -> tuple[Tensor, Tensor]:
        """Where everybody is at the next steps: poses [P, A, s, 3] from the scene's origin on the CPU, and who is
        there [P, A, s]; the AV's row means nothing."""
        ...

    def happened(self, ego: Tensor) -> None:
        """Where the AV went meanwhile: [P, s, 3] on the CPU."""
        ...


class Traffic(Protocol):
    """A kind of traffic.

    Attributes:
        token_steps: steps of 0.1 s from one decision to the next.
    """

    @property
    def token_steps(self) -> int: ...

    def together(self, agents: int) -> int:
        """How many copies of a scene with so many agents move at once, to bound the memory."""
        ...

    def begin(self, scene: Scene, copies: int, seed: int) -> Underway:
        """P copies of a single scene at its current step; what is drawn depends on (seed, scene) alone."""
        ...


def _ego(scene: Scene) -> int:
    """Row of the AV among the simulated agents."""
    return int(scene.agents.is_sdc[scene.simulated].int().argmax())


class LogTraffic:
    """Everybody does what was recorded, whatever the AV does, and is away while it was not seen."""

    token_steps = 1

    def together(self, agents: int) -> int:
        return 4096

    def begin(self, scene: Scene, copies: int, seed: int) -> Underway:
        if not scene.has_future:
            raise UserError(f"scenario {scene.scenario_id}: {scene.num_steps} steps; log replay needs a future")
        agents, chosen = scene.agents, scene.simulated
        future = slice(CURRENT_INDEX + 1, CURRENT_INDEX + 1 + FUTURE_STEPS)
        position = agents.position[chosen, future, :2] - scene_origin(scene)
        pose = torch.cat((position, agents.heading[chosen, future].unsqueeze(-1)), dim=-1)
        return _Replay(pose.expand(copies, -1, -1, -1), agents.valid[chosen, future].expand(copies, -1, -1))


class _Replay:
    def __init__(self, pose: Tensor, valid: Tensor) -> None:
        self._pose, self._valid, self._step = pose, valid, 0

    def decide(self) -> tuple[Tensor, Tensor]:
        now = slice(self._step, self._step + 1)
        return self._pose[:, :, now], self._valid[:, :, now]

    def happened(self, ego: Tensor) -> None:
        self._step += 1


class ModelTraffic:
    """A policy or the reference drives everybody but the AV.

    The policy sees the AV as any other vehicle, the reference as the tokens nearest to its motion.
    """

    def __init__(self, agent: PolicyAgent | ReferenceAgent) -> None:
        self._agent = agent

    @property
    def token_steps(self) -> int:
        return self._agent.vocabulary.token_steps

    def together(self, agents: int) -> int:
        return self._agent.together(agents)

    def begin(self, scene: Scene, copies: int, seed: int) -> Underway:
        if isinstance(self._agent, PolicyAgent):
            return _Driven(self._agent, scene, copies, seed)
        return _Unrolled(self._agent, scene, copies, seed)


class _Driven:
    def __init__(self, agent: PolicyAgent, scene: Scene, copies: int, seed: int) -> None:
        self._vocabulary, self._ego = agent.vocabulary, _ego(scene)
        world = repeat_world(agent.world(scene), copies)
        # The AV replays what its planner drove, which is filled in as it becomes known.
        world = dataclasses.replace(world, log=world.log.clone(), log_valid=world.log_valid.clone())
        world.log_valid[:, self._ego] = True
        controlled = controlled_agents(world).clone()
        controlled[:, self._ego] = False
        self._world, self._driving = world, agent.begin(world, controlled)
        shape = (decisions(self._vocabulary), world.types.shape[1])
        self._uniform = torch.rand(shape, generator=generator_for(seed, str(scene.scenario_id)))
        self._tokens = torch.zeros_like(world.types)

    def decide(self) -> tuple[Tensor, Tensor]:
        state = self._driving.state
        uniform = self._uniform[state.decision].to(state.pose.device).expand(len(state.pose), -1)
        self._tokens = self._driving.decide(uniform.contiguous())
        pose = apply_token(self._vocabulary, state.pose, self._tokens, self._world.types)
        return pose.cpu(), torch.ones(pose.shape[:-1], dtype=torch.bool)

    def happened(self, ego: Tensor) -> None:
        first = self._driving.state.decision * self._vocabulary.token_steps
        self._world.log[:, self._ego, first : first + ego.shape[1]] = ego.to(self._world.log.device)
        self._driving.execute(self._tokens)


class _Unrolled:
    def __init__(self, agent: ReferenceAgent, scene: Scene, copies: int, seed: int) -> None:
        self._vocabulary, self._sampling, self._ego = agent.vocabulary, agent.sampling, _ego(scene)
        self._unrolling = agent.unroll(scene, copies)
        shape = (FUTURE_STEPS // self._vocabulary.token_steps, int(scene.simulated.sum()))
        self._uniform = torch.rand(shape, generator=generator_for(seed, str(scene.scenario_id)))
        self._decision = 0
        self._ids, self._motion = torch.zeros(0), torch.zeros(0)

    def decide(self) -> tuple[Tensor, Tensor]:
        unrolling = self._unrolling
        types, pose = unrolling.types, unrolling.pose
        uniform = self._uniform[self._decision].to(pose.device).expand(len(pose), -1)
        self._ids = draw(unrolling.logits(), uniform, types, self._sampling)
        self._motion = apply_token(self._vocabulary, pose, self._ids, types)
        return self._motion.cpu(), torch.ones(self._motion.shape[:-1], dtype=torch.bool)

    def happened(self, ego: Tensor) -> None:
        unrolling, motion, row = self._unrolling, self._motion.clone(), self._ego
        motion[:, row] = ego.to(motion.device)
        token, _ = match_token(
            self._vocabulary, unrolling.pose[:, row], motion[:, row, -1], unrolling.types[:, row]
        )
        ids = self._ids.clone()
        ids[:, row] = token
        unrolling.execute(ids, motion)
        self._decision += 1


def load_traffic(source: str | Path, sampling: SamplingConfig | None = None, device: str = "cpu") -> Traffic:
    """Traffic by name: ``log``, or the path of a policy's or a reference's checkpoint.

    Raises:
        UserError: no such file, or not such a checkpoint.
    """
    if str(source) == "log":
        return LogTraffic()
    path = Path(source)
    if checkpoint_kind(path) == POLICY_KIND:
        return ModelTraffic(PolicyAgent.from_checkpoint(path, sampling, device))
    return ModelTraffic(ReferenceAgent.from_checkpoint(path, sampling, device))

"""What an agent is: it starts in a scene, says where it goes next, and is told where everybody went.

    agent = make_agent("policy", Path("policy.ckpt"))
    driven = ...                                     # [A] bool: which agents it drives
    drive = agent.start(agent.prepare(scene), 1, driven)
    while True:
        pose, present = drive.step(torch.rand(1, A))  # the next agent.token_steps steps of 0.1 s
        pose[:, ~driven] = ...                        # where the agents went that it does not drive
        drive.observe(pose)

The scene holds the map and the last second of everybody; later steps are not read, but by the log. With these calls
agents are sampled, drive around a planner, and drive inside SUMO. A new agent is one file with a subclass of
``Agent``, and its import and entry in ``catalogue.py``.

Shape legend: R rollouts, A agents (those of ``scene.simulated``, in order), s steps of 0.1 s in a decision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from data.errors import UserError
from data.ground import joint_states
from data.scene import FUTURE_STEPS, Scene, generator_for
from data.tokenizer import scene_origin


class Drive(Protocol):
    """R rollouts of a scene that are under way. ``step`` and ``observe`` take turns.

    Poses are x, y, heading in metres and radians, minus ``data.tokenizer.scene_origin``, on the agent's device.
    """

    def step(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Decide for all driven agents at once; none knows what another is about to do.

        Args:
            uniform: [R, A] random numbers in [0, 1), all that is random in the decision.

        Returns:
            Poses [R, A, s, 3] after each of the next steps, and whether the agent is there [R, A, s]. Rows of
            agents that are not driven mean nothing.
        """
        ...

    def observe(
        self,
        pose: Tensor,
        present: Tensor | None = None,
        velocity: Tensor | None = None,
        red: Tensor | None = None,
    ) -> None:
        """Take note of what happened in these steps.

        Args:
            pose: [R, A, s, 3] where all agents went: driven ones as ``step`` said, or as they could.
            present: [R, A, s] bool; by default, everybody stays who is there.
            velocity: [R, A, 2] m/s at the end; by default, that of the last step.
            red: [R, S] bool, signals that are red now; by default, as they were.
        """
        ...


class Agent(ABC):
    """An agent of any kind; subclasses say how a drive starts.

    Attributes:
        token_steps: steps of 0.1 s from one decision to the next.
        device: of the poses.
        max_rows: rollouts times agents that are driven at once, to bound the memory.
        joins_scenes: whether it drives in several scenes at once when it samples. A GPU waits for the host
            otherwise; a CPU would be no faster.
    """

    token_steps: int = FUTURE_STEPS
    device: torch.device = torch.device("cpu")
    max_rows: int = 1 << 20
    joins_scenes: bool = False

    def prepare(self, *scenes: Scene) -> Any:
        """What all drives in a scene share, such as its encoded map; or in several, agents padded at the end.

        Raises:
            UserError: several scenes, and the agent drives in one alone.
        """
        if len(scenes) > 1:
            raise UserError(f"{type(self).__name__} drives in one scene at a time, not in {len(scenes)}")
        return scenes[0]

    def prepare_briefly(self, *scenes: Scene) -> Any:
        """``prepare`` for drives of a few decisions, where less work does for these."""
        return self.prepare(*scenes)

    @abstractmethod
    def start(self, prepared: Any, count: int, driven: Tensor | None = None) -> Drive:
        """Rollouts at the current step of a scene.

        Args:
            prepared: of ``prepare``; the rollouts of each scene are consecutive rows.
            count: R of each scene.
            driven: [A] bool, or [scenes, A], the agents that it drives; all by default.
        """

    def rollouts(self, scene: Scene, count: int, seed: int) -> Tensor:
        """Joint futures of all agents of a scene that a submission must simulate.

        Depends on the scene, ``count`` and ``seed`` alone. The first of more rollouts are the same up to rounding.

        Returns:
            [R, A, 80, 4] float32 on the CPU: x, y, z, heading in global coordinates for the A agents of
            ``scene.simulated``, in order; z follows the map (``data.ground``), headings are in [-pi, pi).
        """
        [states] = self._driven([scene], count, seed)
        return states

    def rollouts_of(self, scenes: Iterable[Scene], count: int, seed: int) -> Iterator[tuple[Scene, Tensor]]:
        """Each scene with its ``rollouts``.

        Those of an agent that ``joins_scenes`` differ by rounding; rarely that decides a draw.
        """
        batch: list[Scene] = []
        widest = 0
        for scene in scenes:
            agents = int(scene.simulated.sum())
            full = (len(batch) + 1) * count * max(widest, agents) > self.max_rows
            if batch and (full or not self.joins_scenes):
                yield from self._each(batch, count, seed)
                batch, widest = [], 0
            batch.append(scene)
            widest = max(widest, agents)
        if batch:
            yield from self._each(batch, count, seed)

    def _each(self, scenes: list[Scene], count: int, seed: int) -> Iterator[tuple[Scene, Tensor]]:
        if len(scenes) == 1:
            return iter([(scenes[0], self.rollouts(scenes[0], count, seed))])
        return zip(scenes, self._driven(scenes, count, seed), strict=True)

    @torch.no_grad()
    def _driven(self, scenes: Sequence[Scene], count: int, seed: int) -> list[Tensor]:
        """``rollouts`` of scenes that are driven at once."""
        prepared, agents = self.prepare(*scenes), [int(scene.simulated.sum()) for scene in scenes]
        shape = (count, FUTURE_STEPS // self.token_steps)
        drawn = [
            torch.rand((*shape, there), generator=generator_for(seed, str(scene.scenario_id)))
            for scene, there in zip(scenes, agents, strict=True)
        ]
        widest = max(agents)
        uniform = torch.stack([pad(part, (0, widest - part.shape[-1])) for part in drawn]).to(self.device)
        parts, most = [], max(1, self.max_rows // max(1, len(scenes) * widest))
        for part in uniform.split(most, dim=1):  # [scenes, r, D, A]
            drive = self.start(prepared, part.shape[1])
            poses: list[Tensor] = []
            for decision in part.flatten(0, 1).unbind(1):
                if poses:
                    drive.observe(poses[-1])
                poses.append(drive.step(decision.contiguous())[0])
            parts.append(torch.cat(poses, dim=2).unflatten(0, part.shape[:2]))
        pose = torch.cat(parts, dim=1).cpu()  # [scenes, R, A, 80, 3]
        return [
            joint_states(scene, own[:, :there], scene_origin(scene))
            for scene, own, there in zip(scenes, pose, agents, strict=True)
        ]

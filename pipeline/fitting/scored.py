"""Batches of scenes that the metric can score: what it needs of them is prepared by the loader, too.

Shape legend: B scenes, R rollouts, A agents of a scene, M new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.errors import UserError
from data.scene import FUTURE_STEPS, Scene, generator_for, map_tensors
from models.reference.inputs import SceneInputs
from pipeline.fitting.batches import DrawnRecording, RecordedScenes, SceneKey
from submission.realism import SceneContext, prepare_scene


@dataclass(frozen=True)
class ScoredScene:
    """A scene as the metric sees it.

    Attributes:
        scene: on the CPU, where heights are looked up. context: for its score.
        order: [A] int64, which agent of the scene each agent of the context is.
    """

    scene: Scene
    context: SceneContext
    order: Tensor


@dataclass(frozen=True)
class ScoredRecording:
    """A scene of a batch: its recording, its score, and the random numbers of its rollouts."""

    drawn: DrawnRecording
    scored: ScoredScene
    uniform: Tensor  # [R, M, A] in [0, 1)


@dataclass(frozen=True)
class ScoredInputs:
    """A batch, and what the metric needs of each of its scenes."""

    inputs: SceneInputs
    scenes: tuple[ScoredScene, ...]
    uniform: Tensor  # [B, R, M, A], padded

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> ScoredInputs:
        """With ``function`` applied to every tensor but those of scenes, which stay on the CPU."""
        scenes = tuple(
            ScoredScene(one.scene, map_tensors(one.context, function), function(one.order)) for one in self.scenes
        )
        return ScoredInputs(map_tensors(self.inputs, function), scenes, function(self.uniform))

    def pin_memory(self) -> ScoredInputs:
        """In page-locked memory; torch's loaders call this."""
        return self.map_tensors(lambda tensor: tensor.pin_memory())


class ScoredScenes(RecordedScenes):
    """Recorded scenes with what the metric needs, not augmented: a mirrored scene has another score.

    Args:
        rollouts: R, of each scene. seed: of their random numbers. Others as of ``RecordedScenes``.
    """

    def __init__(self, *args: Any, rollouts: int, seed: int, **further: Any) -> None:
        super().__init__(*args, seed=seed, **further)
        self._rollouts, self._scored = rollouts, dict[int, ScoredScene]()

    def scored(self, index: int) -> ScoredScene:
        """One scene for the metric, with the agents that are kept.

        Raises:
            UserError: ``max_agents`` leaves out an agent that the metric evaluates.
        """
        if index in self._scored:
            return self._scored[index]
        whole = self.whole(index)
        scene = self.kept(whole)
        missing = int((whole.evaluated & whole.simulated).sum() - (scene.evaluated & scene.simulated).sum())
        if missing:
            raise UserError(
                f"fit.max_agents is {self._config.max_agents}: {missing} of the agents that the metric evaluates "
                f"in scenario {scene.scenario_id} are left out; raise it"
            )
        context = prepare_scene(scene)
        order = (context.agent_id.unsqueeze(-1) == scene.agents.id).int().argmax(-1)
        found = ScoredScene(scene, context, order)
        if len(self._scored) < self._config.cache_scenes:
            self._scored[index] = found
        return found

    def __getitem__(self, key: SceneKey) -> ScoredRecording:
        drawn, scored = super().__getitem__(key), self.scored(key.row)
        tokens = FUTURE_STEPS // self._vocabulary.token_steps
        generator = generator_for(self._seed, f"rollouts/{key.step}/{key.row}")
        uniform = torch.rand(self._rollouts, tokens, len(scored.order), generator=generator)
        return ScoredRecording(drawn, scored, uniform)

    def batch(self, scenes: Sequence[ScoredRecording]) -> ScoredInputs:
        agents = max(one.uniform.shape[-1] for one in scenes)
        padded = [torch.nn.functional.pad(one.uniform, (0, agents - one.uniform.shape[-1])) for one in scenes]
        inputs = super().batch([one.drawn for one in scenes])
        return ScoredInputs(inputs, tuple(one.scored for one in scenes), torch.stack(padded))

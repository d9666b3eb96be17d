"""The quick score against errors by hand, and against the metric itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from data.scene import AgentType, Scene
from pipeline.agents.baselines import ConstantVelocity, LogReplay
from pipeline.agents.closed_loop import closed_loop_figures, mean_figures, scene_figures
from pipeline.evaluation.motion import motion_figures, motion_sums
from submission.realism import load_config, prepare_scene, score
from tests.models.scenes import random_scene
from tests.scenes import Mover, hand_made

# Metres beside the log, by rollout and agent.
BESIDE = torch.tensor([[9.0, 3.0, 4.0], [9.0, 1.0, 2.0]])


class Beside(LogReplay):
    """Keeps beside the log."""

    def rollouts(self, scene: Scene, count: int, seed: int) -> Tensor:
        assert (count, seed) == (2, 7)
        agents = scene.agents
        states = torch.cat((agents.position[:, 11:], agents.heading[:, 11:, None]), dim=-1).expand(2, -1, -1, -1)
        aside = torch.zeros(2, 3, 1, 4)
        aside[..., 1] = BESIDE[..., None]
        return states + aside


def test_errors_by_hand() -> None:
    """One agent that nobody records after now, one recorded for 8 s, and one for 1 s."""
    scene = hand_made([Mover(speed=4.0), Mover(y=10.0, speed=5.0), Mover(y=20.0)])
    agents = scene.agents
    agents.valid[0, 11:], agents.valid[2, 21:] = False, False
    agents.position[1, 11:, 1] += 0.6
    agents.position[2, 11:16, 0] += 1.0
    agents.position[2, 21:] = 1e5
    found = closed_loop_figures(Beside(), [scene], 2, 7)
    assert found["ade_m"] == pytest.approx((2.0 + 3.0) / 2, rel=1e-5)
    assert found["min_ade_m"] == pytest.approx((1.0 + 2.0) / 2, rel=1e-5)
    assert found["constant_velocity_ade_m"] == pytest.approx((0.6 + 0.5) / 2, rel=1e-5)
    assert mean_figures([scene_figures(scene, Beside().rollouts(scene, 2, 7))])["diversity_m"] == pytest.approx(
        2.0, rel=1e-5
    )
    assert "realism" not in found, "there is no road edge"
    # Scenes weigh as much as they have agents.
    other = hand_made([Mover(speed=4.0), Mover(y=10.0, speed=5.0), Mover(y=20.0)])
    both = closed_loop_figures(Beside(), [scene, other], 2, 7)
    assert both["ade_m"] == pytest.approx((2.0 + 3.0 + 9.0 + 2.0 + 3.0) / 5, rel=1e-5)


def test_realism_is_the_metrics_mean_and_motion_that_of_the_types() -> None:
    scenes, agent = [random_scene(2), random_scene(3)], ConstantVelocity()
    vehicles = [int(AgentType.VEHICLE)]
    ids = [scene.agents.id[scene.simulated] for scene in scenes]
    states = [agent.rollouts(scene, 3, 0) for scene in scenes]
    config = load_config("2025")
    scores = [
        float(score(prepare_scene(scene), agent_id, future, config).values["metametric"])
        for scene, agent_id, future in zip(scenes, ids, states, strict=True)
    ]
    assert scores[0] != pytest.approx(scores[1], rel=1e-3)
    for types in (None, vehicles):
        found = closed_loop_figures(agent, scenes, 3, 0, types)
        assert found["realism"] == pytest.approx(sum(scores) / 2)
        sums = [motion_sums(*rest, types) for rest in zip(scenes, ids, states, strict=True)]
        assert motion_figures(sums).items() <= found.items()
    assert found["progress_m"] != closed_loop_figures(agent, scenes, 3, 0)["progress_m"]
    assert closed_loop_figures(agent, [], 3, 0) == {}

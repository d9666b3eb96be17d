"""Driving: tokens are followed exactly, the replay is what was replayed, the same seed gives the same drive."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from data.scene import RoadMap
from data.tokenizer import local_pose
from data.vocabulary import Vocabulary
from models.reference.agent import ReferenceAgent
from pipeline.agents.baselines import ConstantVelocity
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.agents.reference_agent import ReferenceDriver
from pipeline.studies.cosimulation.area import Area
from pipeline.studies.cosimulation.drive import Drive, drive
from pipeline.studies.cosimulation.drivers import Decide, Driver, agent_driver, replay_driver
from pipeline.studies.cosimulation.measuring import measure
from pipeline.studies.cosimulation.session import Frame
from tests.models.reference.conftest import make_model
from tests.pipeline.studies.cosimulation.conftest import CONFIG, STEPS


def test_taken_vehicles_follow_their_tokens(area: Area, agent: PolicyAgent, vocabulary: Vocabulary) -> None:
    driver = agent_driver(area, agent, 0)
    plans: list[tuple[torch.Tensor, torch.Tensor]] = []

    def begin(road: RoadMap) -> Decide:
        decide = driver.begin(road)

        def watched(frames: Sequence[Frame], rows: NDArray[np.int64]) -> NDArray[np.float64]:
            pose = decide(frames, rows)
            plans.append((torch.from_numpy(rows), torch.from_numpy(pose)))
            return pose

        return watched

    done = drive(area, CONFIG, Driver(begin, driver.steps))
    assert done.deviation < 0.01, "where SUMO has them"
    assert len(plans) == STEPS // 2
    checked, tokens = 0, set()
    for number, (rows, planned) in enumerate(plans):
        first = number * 2
        wanted = planned.clone()
        wanted[..., :2] -= done.world.origin[0]
        wanted = wanted.float()
        types = done.world.types[0, rows]
        ends = local_pose(wanted[:, -1], done.pose[rows, first]).unsqueeze(1)
        error, token = (ends - vocabulary.ends[types]).abs().amax(-1).min(-1)
        assert float(error.max()) < 1e-3
        there = done.present[rows, first + 1 : first + 3]
        got = done.pose[rows, first + 1 : first + 3]
        torch.testing.assert_close(got[there][:, :2], wanted[there][:, :2], atol=2e-4, rtol=0)
        assert bool((torch.cos(got[there][:, 2] - wanted[there][:, 2]) > 1 - 1e-6).all())
        checked += int(there.sum())
        tokens |= set(token.tolist())
    assert checked > STEPS * len(done.taken) // 2
    assert len(tokens) > 5, "it does something"


def test_the_replay_is_what_was_replayed(area: Area, own: Drive) -> None:
    again = drive(area, CONFIG, replay_driver(own.pose, own.present, own.world.origin[0], 2))
    assert torch.equal(again.taken, own.taken)
    taken = own.taken
    there = own.present[taken] & again.present[taken]
    torch.testing.assert_close(again.pose[taken][there], own.pose[taken][there], atol=2e-4, rtol=0)
    # Being moved from outside must cost nothing, or the policy would be blamed for it.
    first, second = measure(area, own), measure(area, again)
    for name in ("collisions", "sumo_says_collisions", "hard_brakes"):
        assert abs(first[name] - second[name]) <= 1


def test_same_seed_same_drive(area: Area, agent: PolicyAgent) -> None:
    first, second = (drive(area, CONFIG, agent_driver(area, agent, 3)) for _ in range(2))
    assert torch.equal(first.pose, second.pose)
    assert measure(area, first) == measure(area, second)
    other = drive(area, CONFIG, agent_driver(area, agent, 4))
    assert not torch.equal(first.pose, other.pose)


def test_sumo_users_react_but_begin_alike(own: Drive, straight: Drive) -> None:
    assert torch.equal(own.pose[:, 0], straight.pose[:, 0])
    assert torch.equal(own.taken, straight.taken)
    assert not torch.equal(own.pose[own.taken, -1], straight.pose[own.taken, -1])
    # Straight on: equal steps of everybody who is still there.
    step = straight.pose[straight.taken].diff(dim=1)[..., :2]
    there = straight.present[straight.taken].all(-1)
    assert float((step[there] - step[there][:, :1]).abs().max()) < 2e-3


def test_agents_are_started_again(area: Area, straight: Drive) -> None:
    """Constant velocity, started again every second from what is there then, goes where it goes without that."""

    class Steps(ConstantVelocity):
        token_steps = 2

    done = drive(area, CONFIG, agent_driver(area, Steps(), 0))
    assert torch.equal(done.taken, straight.taken)
    there = done.present[done.taken] & straight.present[done.taken]
    assert there.float().mean() > 0.9
    moved = (straight.pose[done.taken, -1] - straight.pose[done.taken, 0])[:, :2].norm(dim=-1)
    assert int((moved > 5.0).sum()) >= 3
    # The velocity is read from positions of the last step, rounded in float32 a kilometre from the origin.
    off = (done.pose - straight.pose)[done.taken][there][:, :2].norm(dim=-1)
    assert float(off.max()) < 0.05


def test_the_reference_drives_by_its_tokens(area: Area, straight: Drive) -> None:
    """Every decision ends in a token of the vocabulary, also after it was started again."""
    reference = ReferenceDriver(ReferenceAgent(make_model(2)))
    driver = agent_driver(area, reference, 0)
    done = drive(area, CONFIG, driver)
    assert torch.equal(done.taken, straight.taken)
    assert done.deviation < 0.01
    ends, checked = reference.reference.vocabulary.ends, 0
    for row in done.taken.tolist():
        kind = int(done.world.types[0, row])
        for first in range(0, STEPS, 2):
            if done.present[row, first : first + 3].all():
                end = local_pose(done.pose[row, first + 2], done.pose[row, first])
                assert float((end - ends[kind]).abs().amax(-1).min()) < 2e-3
                checked += 1
    assert checked > 50
    again = drive(area, CONFIG, driver)
    torch.testing.assert_close(again.pose, done.pose)

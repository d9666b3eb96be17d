"""Driving: tokens are followed exactly, the replay is what was replayed, the same seed gives the same drive."""

from __future__ import annotations

import torch

from data.tokenizer import apply_token
from data.vocabulary import Vocabulary
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.studies.cosimulation.area import Area
from pipeline.studies.cosimulation.drive import Drive, drive
from pipeline.studies.cosimulation.drivers import PolicyDriver, ReplayDriver
from pipeline.studies.cosimulation.measuring import measure
from tests.pipeline.studies.cosimulation.conftest import CONFIG, STEPS


class Watched(PolicyAgent):
    """Remembers its tokens."""

    tokens: list[tuple[torch.Tensor, torch.Tensor]]

    def decide(self, worlds, state, who, uniform):
        tokens = super().decide(worlds, state, who, uniform)
        self.tokens.append((who[1], tokens[0]))
        return tokens


def test_taken_vehicles_follow_their_tokens(area: Area, agent: PolicyAgent, vocabulary: Vocabulary) -> None:
    watched = Watched(agent.policy, agent.vocabulary, agent.view)
    watched.tokens = []
    done = drive(area, CONFIG, PolicyDriver(watched, 0, area.name, len(area.users), STEPS // 2))
    assert done.deviation < 0.01, "where SUMO has them"
    assert len(watched.tokens) == STEPS // 2
    checked = 0
    for number, (rows, tokens) in enumerate(watched.tokens):
        first = number * 2
        types = done.setting.world.types[0, rows]
        wanted = apply_token(vocabulary, done.pose[rows, first], tokens[rows], types)
        there = done.present[rows, first + 1 : first + 3]
        got = done.pose[rows, first + 1 : first + 3]
        torch.testing.assert_close(got[there][:, :2], wanted[there][:, :2], atol=2e-4, rtol=0)
        assert bool((torch.cos(got[there][:, 2] - wanted[there][:, 2]) > 1 - 1e-6).all())
        checked += int(there.sum())
    assert checked > STEPS * len(done.taken) // 2
    assert len({int(token) for rows, tokens in watched.tokens for token in tokens[rows]}) > 5, "it does something"


def test_the_replay_is_what_was_replayed(area: Area, own: Drive) -> None:
    again = drive(area, CONFIG, ReplayDriver(own.pose, own.present, 2))
    assert torch.equal(again.taken, own.taken)
    taken = own.taken
    there = own.present[taken] & again.present[taken]
    torch.testing.assert_close(again.pose[taken][there], own.pose[taken][there], atol=2e-4, rtol=0)
    # Being moved from outside must cost nothing, or the policy would be blamed for it.
    first, second = measure(area, own), measure(area, again)
    for name in ("collisions", "sumo_says_collisions", "hard_brakes"):
        assert abs(first[name] - second[name]) <= 1


def test_same_seed_same_drive(area: Area, agent: PolicyAgent) -> None:
    first, second = (
        drive(area, CONFIG, PolicyDriver(agent, 3, area.name, len(area.users), STEPS // 2)) for _ in range(2)
    )
    assert torch.equal(first.pose, second.pose)
    assert measure(area, first) == measure(area, second)
    other = drive(area, CONFIG, PolicyDriver(agent, 4, area.name, len(area.users), STEPS // 2))
    assert not torch.equal(first.pose, other.pose)


def test_sumo_users_react_but_begin_alike(own: Drive, straight: Drive) -> None:
    assert torch.equal(own.pose[:, 0], straight.pose[:, 0])
    assert torch.equal(own.taken, straight.taken)
    assert not torch.equal(own.pose[own.taken, -1], straight.pose[own.taken, -1])
    # Straight on: equal steps of everybody who is still there.
    step = straight.pose[straight.taken].diff(dim=1)[..., :2]
    there = straight.present[straight.taken].all(-1)
    assert float((step[there] - step[there][:, :1]).abs().max()) < 2e-3

"""What is shown of the models is what they sampled from."""

from __future__ import annotations

import pytest
import torch

from models.reference.agent import ReferenceAgent
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.agents.reference_agent import ReferenceDriver
from pipeline.selfplay.rollout import act
from pipeline.simulator.observation import observe
from pipeline.simulator.step import agent_indices, reset
from pipeline.simulator.world import build_world
from pipeline.viewing.explaining import Explainer
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW, make_policy


@pytest.fixture(scope="module")
def explainer(reference: ReferenceAgent) -> Explainer:
    vocabulary = reference.vocabulary
    return Explainer(vocabulary, (make_policy(vocabulary), VIEW), reference, likeliest=3)


def test_tokens_are_those_that_were_executed(explainer: Explainer, reference: ReferenceAgent) -> None:
    scene = random_scene(0)
    agent = PolicyAgent(make_policy(reference.vocabulary), reference.vocabulary, VIEW)
    states = agent.rollouts(scene, 2, 0)
    for rollout in states:
        found = explainer.explain(scene, rollout)
        assert found.token.shape == (int(scene.simulated.sum()), 40)
        for opinion in found.opinions.values():
            assert opinion.token.shape == (*found.token.shape, 3)
            # Likeliest first, and what was executed has the probability that the list says.
            assert (opinion.probability.diff(dim=-1) <= 0).all()
            named = opinion.token == found.token.unsqueeze(-1)
            torch.testing.assert_close(opinion.probability[named], opinion.executed[named.any(-1)])
            assert (opinion.executed[~named.any(-1)] <= opinion.probability[..., -1][~named.any(-1)] + 1e-6).all()


def test_the_policy_is_asked_as_it_was_when_it_drove(explainer: Explainer, reference: ReferenceAgent) -> None:
    scene = random_scene(2)
    policy = make_policy(reference.vocabulary)
    states = PolicyAgent(policy, reference.vocabulary, VIEW).rollouts(scene, 1, 0)
    opinion = explainer.explain(scene, states[0]).opinions["policy"]
    world = build_world(scene, reference.vocabulary, VIEW.road_segments)
    state = reset(world, torch.ones_like(world.exists), VIEW.history)
    logits, _ = act(policy, observe(world, state, agent_indices(world.exists), VIEW))
    expected = logits.softmax(-1).topk(3, dim=-1)
    torch.testing.assert_close(opinion.probability[:, 0], expected.values, atol=1e-5, rtol=0)


def test_models_think_more_of_what_they_do_themselves(explainer: Explainer, reference: ReferenceAgent) -> None:
    policy = PolicyAgent(make_policy(reference.vocabulary), reference.vocabulary, VIEW)
    sums = {"policy": 0.0, "reference": 0.0}
    for seed in range(3):
        scene = random_scene(seed)
        for name, states in {
            "policy": policy.rollouts(scene, 1, 0),
            "reference": ReferenceDriver(reference).rollouts(scene, 1, 0),
        }.items():
            opinions = explainer.explain(scene, states[0]).opinions
            logs = {
                kind: float(opinion.executed.clamp(min=1e-9).log().mean()) for kind, opinion in opinions.items()
            }
            sums[name] += logs[name] - logs["policy" if name == "reference" else "reference"]
    assert all(value > 0 for value in sums.values())


def test_models_may_be_missing(reference: ReferenceAgent) -> None:
    scene = random_scene(1)
    states = ReferenceDriver(reference).rollouts(scene, 1, 0)[0]
    assert list(Explainer(reference.vocabulary, None, reference).explain(scene, states).opinions) == ["reference"]
    assert not Explainer(reference.vocabulary).explain(scene, states).opinions

"""What the reference may read: lights up to the current step, agents that a submission simulates."""

from __future__ import annotations

import dataclasses

import torch

from data.batch import collate
from data.scene import Scene
from models.reference.inputs import KnownLights, collate_inputs, keep_agents, known_lights
from models.reference.recording import recording_of, scene_inputs
from tests.models.scenes import random_scene
from tests.scenes import Mover, hand_made


def lights_of(scene: Scene) -> KnownLights:
    batch = collate([scene])
    return known_lights(batch.lights.state, batch.lights.observed, 9)


def test_lights_after_the_current_step_are_never_read():
    scene = random_scene(0)
    state = scene.lights.state.clone()
    state[:, 11:] = (state[:, 11:] + 1) % 9
    changed = dataclasses.replace(scene, lights=dataclasses.replace(scene.lights, state=state))
    first, second = lights_of(scene), lights_of(changed)
    assert torch.equal(first.code, second.code)
    assert torch.equal(first.age, second.age)
    short = lights_of(random_scene(0, steps=11))
    assert torch.equal(first.code, short.code), "a test scenario gives the same"
    assert torch.equal(first.age, short.age)


def test_light_states_and_ages_by_hand():
    scene = random_scene(1)
    scene.lights.observed[0, 8:] = False
    known = lights_of(scene)
    state = scene.lights.state
    assert known.code[0, 0].tolist() == [int(state[0, 0]) + 1] + [int(state[0, 7]) + 1] * 8
    torch.testing.assert_close(known.age[0, 0], torch.tensor([0.0] + [0.3 + second for second in range(8)]))
    # The second light is first seen at step 4: nothing is known of it at step 0.
    assert known.code[0, 1].tolist() == [0] + [int(state[1, 10]) + 1] * 8
    torch.testing.assert_close(known.age[0, 1], torch.tensor([0.0, *map(float, range(8))]))


def test_only_simulated_agents_have_tokens(fast_model):
    scene = random_scene(0)
    scene.agents.valid[4, 10] = False
    inputs = scene_inputs(collate([scene]), fast_model.vocabulary)
    assert inputs.agents.simulated[0].tolist() == [True, True, True, True, False, True]
    assert not bool(inputs.tokens.valid[0, 4].any())
    assert not bool(inputs.tokens.pose_valid[0, 4].any())


def test_without_an_av_the_first_agents_are_kept():
    """None is nearer to an AV that is not there than another, wherever the scene lies."""
    scene = random_scene(0)
    nobody = torch.zeros_like(scene.agents.is_sdc)
    agents = dataclasses.replace(scene.agents, is_sdc=nobody, to_predict=nobody)
    scene = dataclasses.replace(scene, agents=agents)
    order = scene.agents.position[:, 10, :2].norm(dim=-1).argsort()
    assert order[:2].tolist() != [0, 1], "the first are not those nearest to the origin"
    assert keep_agents(scene, 2).agents.id.tolist() == scene.agents.id[:2].tolist()


def test_the_size_is_that_of_the_first_valid_step_from_now_on():
    scene = random_scene(0)
    size, valid = scene.agents.size.clone(), scene.agents.valid.clone()
    size += torch.arange(scene.num_steps).view(1, -1, 1)
    valid[1, 10:14] = False
    valid[1, 14] = True
    agents = dataclasses.replace(scene.agents, size=size, valid=valid)
    batch = collate([dataclasses.replace(scene, agents=agents)])
    found = recording_of(batch).size[0]
    assert torch.equal(found[1], size[1, 14])
    assert torch.equal(found[0], size[0, 10])


def test_who_is_far_from_the_av_is_learnt_from_only_where_there_is_none():
    scene = hand_made([Mover(), Mover(x=99.0), Mover(x=101.0)])
    nobody = torch.zeros_like(scene.agents.is_sdc)
    scene = dataclasses.replace(scene, agents=dataclasses.replace(scene.agents, to_predict=nobody))
    assert recording_of(collate([scene])).learnt.tolist() == [[True, True, False]]
    scene = dataclasses.replace(scene, agents=dataclasses.replace(scene.agents, is_sdc=nobody))
    assert recording_of(collate([scene])).learnt.tolist() == [[True, True, True]]


def test_keep_agents_prefers_evaluated_then_near():
    scene = random_scene(0)
    scene.agents.valid[3, 10] = False
    position = scene.agents.position[:, 10, :2]
    distance = (position - position[0]).norm(dim=-1)
    kept = keep_agents(scene, 4)
    others = sorted((float(distance[a]), a) for a in (2, 4, 5))[:2]
    assert kept.agents.id.tolist() == [int(scene.agents.id[a]) for a in sorted([0, 1, *(a for _, a in others)])]
    assert len(keep_agents(scene, 100).agents.id) == 5


def test_collating_prepared_scenes_is_collating_scenes(fast_model):
    scenes = [random_scene(0), random_scene(1, agents=2)]
    together = scene_inputs(collate(scenes), fast_model.vocabulary)
    apart = collate_inputs([scene_inputs(collate([s]), fast_model.vocabulary) for s in scenes])
    assert torch.equal(together.tokens.ids, apart.tokens.ids)
    assert torch.equal(together.pieces.kind, apart.pieces.kind)
    assert torch.equal(together.pieces.light, apart.pieces.light)
    assert torch.equal(together.lights.code, apart.lights.code)
    assert apart.pieces.light[1, int(apart.pieces.valid[1].sum()) :].eq(-1).all()

"""The reference's contract: causality, independence within a step, and invariances of teacher-forced logits."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch

from data.batch import collate
from data.map_pieces import cut_map
from data.scene import MapKind, map_tensors
from models.reference.config import ReferenceConfig
from models.reference.decoder import MapView, expected_centre, look_at_map
from models.reference.inputs import AgentInputs, KnownLights, collate_inputs, select_agents
from models.reference.loss import loss_mask
from models.reference.map_encoder import MapEncoder, MapEncoding
from models.reference.network import Reference
from models.reference.recording import prune_map, scene_inputs
from tests.models.scenes import random_scene
from tests.transformations import move


def inputs_of(model, *scenes):
    return scene_inputs(collate(list(scenes)), model.vocabulary)


def change_from(inputs, model, start, agents):
    """Other tokens from number ``start`` on for some agents, with the poses that they lead to."""
    tokens = inputs.tokens
    ids, poses, valid = tokens.ids.clone(), tokens.poses.clone(), tokens.valid.clone()
    ids[:, agents, start:] = (ids[:, agents, start:] + 7) % model.vocabulary.size
    poses[:, agents, start + 1 :, :2] += 3.0
    poses[:, agents, start + 1 :, 2] += 0.5
    valid[:, agents, start + 1 :] = ~valid[:, agents, start + 1 :] & inputs.agents.simulated[:, agents, None]
    return dataclasses.replace(inputs, tokens=dataclasses.replace(tokens, ids=ids, poses=poses, valid=valid))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("agents", [[0], [1, 2, 4], list(range(6))], ids=["one", "some", "all"])
def test_logits_at_t_depend_on_no_token_at_t_or_later(model, share, agents):
    inputs = inputs_of(model, random_scene(0))
    count = inputs.tokens.ids.shape[-1]
    start = int(share * count)
    before = model(inputs)
    after = model(change_from(inputs, model, start, agents))
    # To the bit: the shapes are the same, and what is hidden has a weight of exactly zero.
    torch.testing.assert_close(after[:, :, : start + 1], before[:, :, : start + 1], atol=0, rtol=0)
    if start + 1 < count:
        changed = (after[0, :, start + 1] - before[0, :, start + 1]).abs().amax(-1)
        assert bool((changed[agents] > 1e-4).all()), "an agent must notice what it did itself"
        others = [a for a in range(6) if a not in agents]
        if others and 0 < share < 0.9:
            assert bool((changed[others] > 1e-5).any()), "and others must notice it too"


def test_each_step_reads_map_past_and_neighbours(model):
    """The causality test would pass for a network that reads nothing."""
    inputs = inputs_of(model, random_scene(0))
    before = model(inputs)
    moved_map = map_tensors(inputs.pieces, lambda t: t + 1.5 if t.is_floating_point() else t)
    assert not torch.allclose(before, model(dataclasses.replace(inputs, pieces=moved_map)), atol=1e-3)
    kinds = dataclasses.replace(inputs.pieces, subtype=inputs.pieces.subtype * 0)
    assert not torch.allclose(before, model(dataclasses.replace(inputs, pieces=kinds)), atol=1e-4)
    lights = dataclasses.replace(inputs.lights, code=(inputs.lights.code + 3) % 10)
    assert not torch.allclose(before, model(dataclasses.replace(inputs, lights=lights)), atol=1e-4)
    older = dataclasses.replace(inputs.lights, age=inputs.lights.age + 2.0)
    assert not torch.allclose(before, model(dataclasses.replace(inputs, lights=older)), atol=1e-5)
    larger = dataclasses.replace(inputs.agents, size=inputs.agents.size * 2)
    assert not torch.allclose(before, model(dataclasses.replace(inputs, agents=larger)), atol=1e-3)


def test_lights_say_nothing_where_no_lane_has_one(model):
    inputs = inputs_of(model, random_scene(0))
    dark = dataclasses.replace(inputs.pieces, light=torch.full_like(inputs.pieces.light, -1))
    before = model(dataclasses.replace(inputs, pieces=dark))
    lights = dataclasses.replace(inputs.lights, code=(inputs.lights.code + 3) % 10)
    assert torch.equal(model(dataclasses.replace(inputs, pieces=dark, lights=lights)), before)


@pytest.mark.parametrize("angle", [0.5, math.pi / 2, 3.0])
def test_turning_and_shifting_the_scene_changes_nothing(model, angle):
    scene = random_scene(3)
    moved = move(scene, angle, (250.0, -130.0))
    first = inputs_of(model, scene)
    # The same tokens: what is tested is the network, not ties of the tokenizer under rounding.
    second = dataclasses.replace(inputs_of(model, moved))
    tokens = dataclasses.replace(second.tokens, ids=first.tokens.ids, valid=first.tokens.valid)
    second = dataclasses.replace(second, tokens=tokens)
    assert float((model(first) - model(second)).abs().max()) < 1e-2 * float(model(first).std())


def test_order_of_agents_does_not_matter(model):
    scene = random_scene(1)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    logits = model(inputs_of(model, scene))[0]
    permuted = model(inputs_of(model, select_agents(scene, order)))[0]
    torch.testing.assert_close(permuted, logits[order], atol=1e-4, rtol=1e-5)


def test_batch_of_scenes_equals_each_alone(model):
    scenes = [random_scene(seed, agents=count) for seed, count in ((0, 6), (1, 2), (2, 5))]
    together = model(inputs_of(model, *scenes))
    prepared = model(collate_inputs([inputs_of(model, scene) for scene in scenes]))
    for row, scene in enumerate(scenes):
        alone = model(inputs_of(model, scene))[0]
        for batch in (together, prepared):
            torch.testing.assert_close(batch[row, : len(alone)], alone, atol=1e-4, rtol=1e-4)


def test_garbage_in_padding_and_in_agents_not_simulated_has_no_influence(model):
    scene = random_scene(2)
    scene.agents.valid[5, 10] = False
    inputs = inputs_of(model, scene, random_scene(4, agents=2))
    before = model(inputs)
    tokens, pieces = inputs.tokens, inputs.pieces
    hidden = ~inputs.agents.simulated
    poses = torch.where(hidden[..., None, None], tokens.poses + 17.0, tokens.poses)
    ids = torch.where(tokens.valid, tokens.ids, 5)
    padding = ~pieces.valid
    noisy = dataclasses.replace(
        inputs,
        tokens=dataclasses.replace(tokens, poses=poses, ids=ids),
        pieces=dataclasses.replace(
            pieces,
            pose=torch.where(padding[..., None], 3.0, pieces.pose),
            point=torch.where(padding[..., None, None], 2.0, pieces.point),
        ),
        agents=dataclasses.replace(inputs.agents, size=torch.where(hidden[..., None], 9.0, inputs.agents.size)),
    )
    after = model(noisy)
    seen = inputs.agents.simulated
    # To the bit: products of the same shapes add the same numbers in the same order, and hidden ones weigh nothing.
    torch.testing.assert_close(after[seen], before[seen], atol=0, rtol=0)


def test_pruning_the_map_changes_no_logit(model):
    inputs = inputs_of(model, random_scene(5))
    pruned = prune_map(inputs, model.config, model.vocabulary.token_steps)
    assert pruned.pieces.kind.shape[1] < inputs.pieces.kind.shape[1]
    torch.testing.assert_close(model(pruned), model(inputs), atol=1e-4, rtol=1e-4)


def test_scenes_without_map_or_lights():
    from tests.models.reference.conftest import make_model

    model = make_model(5)
    scene = random_scene(0)
    bare = dataclasses.replace(
        scene,
        map=map_tensors(scene.map, lambda t: t[:0]),
        lights=map_tensors(scene.lights, lambda t: t[:0]),
    )
    logits = model(inputs_of(model, bare))
    assert bool(logits.isfinite().all())


def test_sequences_of_any_length(model):
    """A prefix of the tokens gives the prefix of the logits, whole seconds or not."""
    inputs = inputs_of(model, random_scene(0))
    whole = model(inputs)
    for count in (1, 3, 7, 12):
        tokens = inputs.tokens
        prefix = dataclasses.replace(
            tokens,
            ids=tokens.ids[..., :count],
            valid=tokens.valid[..., :count],
            poses=tokens.poses[..., : count + 1, :],
        )
        blocks = -(-count // model.block)
        lights = KnownLights(inputs.lights.code[..., :blocks], inputs.lights.age[..., :blocks])
        logits = model(dataclasses.replace(inputs, tokens=prefix, lights=lights))
        # The last boundary's presence is known by its past alone.
        torch.testing.assert_close(logits[:, :, : count - 1], whole[:, :, : count - 1], atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_parameter(fast_model):
    torch.manual_seed(0)
    model = Reference(fast_model.config, fast_model.vocabulary)
    inputs = inputs_of(model, random_scene(0), random_scene(1))
    model(inputs).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().sum()) > 0, name


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_time_slots_ascend_from_one_to_the_span(steps):
    offsets = ReferenceConfig(time_span=3.0, time_slots=8).time_offsets(steps)
    assert offsets[0] == 1
    assert offsets[-1] == 30 // steps
    assert list(offsets) == sorted(set(offsets))
    assert len(offsets) == min(8, 30 // steps)


def test_half_precision_keeps_places_and_probabilities(fast_model):
    inputs = inputs_of(fast_model, random_scene(0))
    exact = fast_model(inputs).log_softmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        near = fast_model(inputs)
    assert near.dtype == torch.float32
    error = (near.log_softmax(-1) - exact)[loss_mask(inputs)].abs()
    assert 0 < float(error.mean()) < 0.02 * float(exact.std())
    # Half a kilometre from anything, half precision of places would turn every wave.
    waves = fast_model.relations.agent
    far = torch.tensor([[500.3, -211.7, 0.4]])
    with torch.autocast("cpu", torch.bfloat16):
        half = waves(far, torch.zeros(1, 3))
    torch.testing.assert_close(half.float(), waves(far, torch.zeros(1, 3)), atol=0.05, rtol=0.05)


def test_computing_again_gives_the_same_gradients_in_less_memory(fast_model):
    model = copy.deepcopy(fast_model).requires_grad_(True)
    inputs = inputs_of(model, random_scene(0), random_scene(1, agents=4))

    def learn(recompute):
        """Gradients, and how many numbers are kept for them."""
        model.recompute = recompute
        model.zero_grad()
        kept = []

        def keep(tensor):
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(inputs)[loss_mask(inputs)].square().mean()
        loss.backward()
        return [p.grad for p in model.parameters()], sum(kept)

    (plain, all_kept), (again, some_kept) = learn(False), learn(True)
    for one, two in zip(plain, again, strict=True):
        torch.testing.assert_close(one, two)
    # Small layers in a test; of a real network a tenth is left.
    assert some_kept < 0.6 * all_kept


def test_lights_fade_with_their_age(model):
    """Steady and fading part by the last observed state, e^-1 of the latter after three seconds."""
    relations = model.relations
    code, age = torch.tensor([[[3, 0], [1, 5]]]), torch.tensor([[[0.0, 9.0], [3.0, 1.5]]])  # [1, S, L]
    light = torch.tensor([[[[0, 1, -1], [1, 0, -1]]]])  # [1, A, L, J]
    view = MapView(pose=torch.zeros(*light.shape, 3), bias=torch.zeros(light.shape), light=light)
    found = relations._light_bias(view, KnownLights(code, age))

    def says(state: int, seconds: float) -> torch.Tensor:
        if state == 0:
            return torch.zeros_like(relations.light[0, 0])
        return relations.light[0, state - 1] + relations.light[1, state - 1] * math.exp(-seconds / 3.0)

    for block in range(2):
        for slot in range(3):
            row = int(light[0, 0, block, slot])
            expected = says(0, 0.0) if row < 0 else says(int(code[0, row, block]), float(age[0, row, block]))
            torch.testing.assert_close(found[0, 0, block, slot], expected)


def test_the_map_is_looked_up_twice_as_far_as_it_is_seen(model):
    """Since an agent moves on for a second after it has looked."""
    radius = model.config.map_radius
    pose = torch.zeros(1, 3, 3)
    pose[0, :, 0] = torch.tensor([0.5, 1.5, 2.5]) * radius
    encoding = MapEncoding(
        torch.zeros(1, 2), torch.zeros(1, 3, 16), pose, torch.ones(1, 3, dtype=torch.bool), torch.full((1, 3), -1)
    )
    view, index = look_at_map(encoding, torch.zeros(1, 1, 1, 1, 2), model.config)
    seen = view.bias[0, 0, 0] > -math.inf
    assert index[0, 0, 0, 0][seen].tolist() == [0, 1]
    assert view.pose[0, 0, 0][seen].tolist() == pose[0, :2].tolist()


def test_what_the_net_reads_is_its_formula(fast_model):
    """Tokens as places and unit vectors of every step, weights by the root of the width, sizes by usual ones."""
    model, words = fast_model, fast_model.vocabulary
    for kind, token in ((0, 0), (1, 7), (2, 39)):
        expected = [
            x
            for pose in words.poses[kind, token].tolist()
            for x in (*pose[:2], math.cos(pose[2]), math.sin(pose[2]))
        ]
        assert model.motion[kind, token].tolist() == pytest.approx(expected, abs=1e-6)
    tables, count = model.token_tables(), words.size
    for kind, token in ((0, 3), (2, 11)):
        own = torch.eye(3)[kind]
        embedding = model.token(torch.cat((model.motion[kind, token], own)))
        torch.testing.assert_close(tables.embedding[kind * count + token], embedding)
        weight = model.head[2](embedding) / model.config.hidden**0.5 + model.token_weight[kind, token]
        torch.testing.assert_close(tables.weight[kind, token], weight)
        agents = AgentInputs(
            torch.tensor([[kind]]), torch.tensor([[[4.0, 1.8, 1.5]]]), torch.ones(1, 1, dtype=torch.bool)
        )
        previous = torch.full((1, 1, 2), token)
        found = model.embed(tables, agents, previous, torch.tensor([[[True, False]]]))[0, 0]
        static = model.agent(torch.cat((torch.tensor([4.0 / 5, 1.8 / 2, 1.5 / 2]), own)))
        torch.testing.assert_close(found, torch.stack((embedding, model.no_token)) + static)


def test_the_map_is_looked_up_where_half_a_second_leads():
    """At constant velocity, by half the boundaries of a second; around those without a last token."""
    pose, before = torch.tensor([[10.0, 4.0, 0.3]] * 2), torch.tensor([[8.0, 5.0, 0.1]] * 2)
    found = expected_centre(pose, before, torch.tensor([True, False]), 5)
    torch.testing.assert_close(found, torch.tensor([[15.0, 1.5], [10.0, 4.0]]))


def test_pieces_are_read_in_their_own_frame_and_size(model):
    """Without layers: the ends of a piece seen from its middle, over the length of a piece."""
    torch.manual_seed(0)
    encoder = MapEncoder(dataclasses.replace(model.config, map_layers=0)).eval()
    pieces = cut_map(collate([random_scene(0)]), torch.tensor([[900.0, -400.0]]))
    found = encoder(pieces)
    for row in range(0, pieces.kind.shape[1], 7):
        (x, y, heading), ends = pieces.pose[0, row].tolist(), pieces.point[0, row, ::2].tolist()
        seen = [complex(a - x, b - y) * complex(math.cos(heading), -math.sin(heading)) / 5.0 for a, b in ends]
        shape = torch.tensor([part for end in seen for part in (end.real, end.imag)])
        kind = encoder.kind.weight.view(len(MapKind), -1, model.config.hidden)[
            int(pieces.kind[0, row]), int(pieces.subtype[0, row])
        ]
        torch.testing.assert_close(found[0, row], encoder.norm(encoder.shape(shape) + kind), atol=1e-4, rtol=1e-4)

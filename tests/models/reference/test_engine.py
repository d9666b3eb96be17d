"""Rollouts: step-by-step logits equal teacher-forced ones, rollouts on the batch axis equal serial ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from data.batch import collate
from data.tokenizer import scene_origin, tokenize_motion
from models.reference.agent import ReferenceAgent
from models.reference.engine import Engine
from models.reference.inputs import agent_inputs, collate_inputs, known_lights
from models.reference.known_scenes import encode_scenes
from models.reference.map_encoder import MapEncoding
from models.reference.recording import scene_inputs
from models.sampling import SamplingConfig, draw
from tests.models.reference.conftest import roll_out
from tests.models.scenes import random_scene


def row_of(encoding, row, pieces=None):
    """The map of one scene of a batch, without the padding behind so many pieces."""
    parts = {name: tensor[row : row + 1] for name, tensor in vars(encoding).items()}
    return MapEncoding(**{name: part if name == "origin" else part[:, :pieces] for name, part in parts.items()})


def roll(model, scenes, rollouts, uniform=None):
    """Tokens [B, R, A, M], poses [B, R, A, M, s, 3], logits [B, R, A, M, K], and what they started from."""
    batch = collate(scenes)
    inputs = scene_inputs(batch, model.vocabulary)
    encoding = model.encode_map(inputs.pieces, scene_origin(batch))
    count = 80 // model.vocabulary.token_steps
    rows = len(scenes) * rollouts
    if uniform is None:
        shape = (rows, count, inputs.agents.types.shape[1])
        uniform = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    lights = known_lights(batch.lights.state, batch.lights.observed, 9)
    unrolling = Engine(model).begin(encoding, inputs.agents, inputs.tokens, lights, rollouts)
    logits, ids, poses = (
        part.unflatten(0, (len(scenes), rollouts))
        for part in roll_out(
            unrolling, count, lambda step, logits: draw(logits, uniform[:, step], unrolling.types, SamplingConfig())
        )
    )
    return ids, poses, logits, batch, inputs, encoding


def test_step_by_step_logits_equal_teacher_forced_ones(model):
    scenes = [random_scene(0), random_scene(1, agents=4)]
    rolled, poses_of, logits, batch, inputs, encoding = roll(model, scenes, rollouts=3)
    first = 10 // model.vocabulary.token_steps
    agent = ReferenceAgent(model)
    simulated = inputs.agents.simulated
    for row in range(3):
        ids = torch.cat((inputs.tokens.ids[..., :first], rolled[:, row]), dim=-1)
        future = simulated.unsqueeze(-1).expand(-1, -1, ids.shape[-1] - first)
        valid = torch.cat((inputs.tokens.valid[..., :first], future), dim=-1)
        poses = torch.cat((inputs.tokens.poses[:, :, : first + 1], poses_of[:, row, :, :, -1]), dim=2)
        scored = agent.score(encoding, batch, ids, valid, poses)[:, :, first:]
        expected = logits[:, row].log_softmax(-1)
        # Tokens far from the last motion have log-probabilities of minus hundreds, to be compared relatively.
        torch.testing.assert_close(scored[simulated], expected[simulated], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(scored.exp().sum(-1), torch.ones(scored.shape[:-1]), atol=1e-5, rtol=0)


def test_rollouts_on_the_batch_axis_equal_serial_ones(model):
    scene = random_scene(2)
    count = 80 // model.vocabulary.token_steps
    uniform = torch.rand(4, count, 6, generator=torch.Generator().manual_seed(3))
    together, _, logits, *_ = roll(model, [scene], 4, uniform)
    for row in range(4):
        alone, _, single, *_ = roll(model, [scene], 1, uniform[row : row + 1])
        # Draws are apart from the borders of tokens by more than logits are rounded.
        assert torch.equal(alone[0, 0], together[0, row])
        torch.testing.assert_close(single[0, 0], logits[0, row], atol=1e-4, rtol=1e-4)
    assert len({tuple(ids.flatten().tolist()) for ids in together[0]}) == 4, "four different futures"


def test_scenes_in_a_batch_roll_out_as_alone(model):
    scenes = [random_scene(0), random_scene(1, agents=3)]
    count = 80 // model.vocabulary.token_steps
    uniform = torch.rand(4, count, 6, generator=torch.Generator().manual_seed(3))
    together, *_ = roll(model, scenes, 2, uniform)
    for row, scene in enumerate(scenes):
        agents = len(scene.agents.id)
        alone, *_ = roll(model, [scene], 2, uniform[2 * row : 2 * row + 2, :, :agents])
        assert torch.equal(alone[0], together[row, :, :agents])


def test_tokenising_a_rollout_gives_its_tokens(model):
    rolled, poses, _, _, inputs, _ = roll(model, [random_scene(3)], 2)
    start = inputs.tokens.poses[:, :, 10 // model.vocabulary.token_steps]
    for row in range(2):
        motion = torch.cat((start[0].unsqueeze(1), poses[0, row].flatten(1, 2)), dim=1)
        tokens = tokenize_motion(
            model.vocabulary,
            motion,
            torch.ones(motion.shape[:2], dtype=torch.bool),
            inputs.agents.types[0],
            anchor=None,
        )
        assert torch.equal(tokens.ids, rolled[0, row])


def test_scoring_in_parts_joins_and_map_encodings_stack(fast_model, monkeypatch):
    agent = ReferenceAgent(fast_model)
    scenes = [random_scene(seed) for seed in range(3)]
    batch = collate(scenes)
    inputs = scene_inputs(batch, fast_model.vocabulary)
    arguments = (batch, inputs.tokens.ids, inputs.tokens.valid, inputs.tokens.poses)
    encoding = agent.encode_map(batch)
    whole = agent.score(encoding, *arguments)
    monkeypatch.setattr("models.reference.agent._MAX_SCORED", 1)
    torch.testing.assert_close(agent.score(encoding, *arguments), whole, atol=1e-5, rtol=1e-5)
    stacked = collate_inputs([agent.encode_map(collate([scene])) for scene in scenes])
    torch.testing.assert_close(agent.score(stacked, *arguments), whole, atol=1e-4, rtol=1e-4)
    swapped = collate_inputs([row_of(encoding, row) for row in (1, 0, 2)])
    assert not torch.allclose(agent.score(swapped, *arguments)[0], whole[0], atol=1e-3)


@pytest.mark.parametrize(("maps", "pairs"), [(16, 1 << 26), (2, 1)])
def test_maps_encoded_together_are_those_encoded_alone(fast_model, monkeypatch, maps, pairs):
    """In the order of the scenes, whatever their sizes, and however many fit into memory."""
    agent = ReferenceAgent(fast_model)
    scenes = []
    for seed, count in enumerate((60, 10, 40, 0, 25)):
        scene = random_scene(seed)
        road = scene.map
        shorter = dataclasses.replace(road, point=road.point[:count], point_feature=road.point_feature[:count])
        scenes.append(dataclasses.replace(scene, map=shorter))
    monkeypatch.setattr("models.reference.agent._MAX_MAPS", maps)
    monkeypatch.setattr("models.reference.agent._MAX_PAIRS", pairs)
    together = agent.encode_map(collate(scenes))
    counts = together.valid.sum(-1).clamp(min=1).tolist()
    rows = [row_of(together, row, count) for row, count in enumerate(counts)]
    assert len({row.valid.shape for row in rows}) > 2
    for scene, row in zip(scenes, rows, strict=True):
        alone = agent.encode_map(collate([scene]))
        for field in dataclasses.fields(MapEncoding):
            one, other = getattr(alone, field.name), getattr(row, field.name)
            torch.testing.assert_close(other, one, atol=2e-5, rtol=1e-5)


def test_stacked_maps_are_padded_to_the_longest_with_pieces_that_are_not_there():
    generator = torch.Generator().manual_seed(0)

    def encoding(scenes: int, pieces: int) -> MapEncoding:
        return MapEncoding(
            origin=torch.randn(scenes, 2, generator=generator),
            feature=torch.randn(scenes, pieces, 4, generator=generator),
            pose=torch.randn(scenes, pieces, 3, generator=generator),
            valid=torch.ones(scenes, pieces, dtype=torch.bool),
            light=torch.randint(3, (scenes, pieces), generator=generator),
        )

    parts = [encoding(2, 5), encoding(1, 9), encoding(1, 1)]
    stacked = collate_inputs(parts)
    assert stacked.valid.sum(-1).tolist() == [5, 5, 9, 1]
    assert stacked.feature.shape == (4, 9, 4)
    for row, (part, index) in enumerate(((0, 0), (0, 1), (1, 0), (2, 0))):
        size = parts[part].valid.shape[1]
        for name in ("feature", "pose", "valid", "light"):
            own, found = getattr(parts[part], name)[index], getattr(stacked, name)[row]
            assert torch.equal(found[:size], own), name
            assert (found[size:] == (-1 if name == "light" else 0)).all(), name
        assert torch.equal(stacked.origin[row], parts[part].origin[index])
        assert torch.equal(row_of(stacked, row).pose, stacked.pose[row : row + 1])


def test_known_scenes_are_those_encoded_one_by_one(fast_model, monkeypatch):
    agent = ReferenceAgent(fast_model)
    scenes = [random_scene(seed, agents=count) for seed, count in ((0, 4), (1, 2), (2, 3))]
    monkeypatch.setattr("models.reference.known_scenes._BATCH", {"cpu": 2, "cuda": 2})
    known = encode_scenes(agent, scenes, 9)
    rows = [2, 0, 2]
    encoding, agents, lights = known.choose(rows)
    assert agents.types.shape[1] == 4
    for place, row in enumerate(rows):
        alone = agent.encode_map(collate([scenes[row]]))
        size = alone.valid.shape[1]
        assert encoding.valid[place].tolist() == [True] * size + [False] * (encoding.valid.shape[1] - size)
        for name in ("feature", "pose", "light"):
            own, chosen = getattr(alone, name)[0], getattr(encoding, name)[place]
            torch.testing.assert_close(chosen[:size], own, atol=1e-5, rtol=1e-5)
            assert (chosen[size:] == (-1 if name == "light" else 0)).all(), name
        assert torch.equal(encoding.origin[place], alone.origin[0])
        expected = agent_inputs(collate([scenes[row]]))
        present = expected.types.shape[1]
        assert torch.equal(agents.types[place, :present], expected.types[0])
        assert torch.equal(agents.size[place, :present], expected.size[0])
        assert agents.simulated[place].tolist() == [True] * present + [False] * (4 - present)
        state = scenes[row].lights
        assert torch.equal(
            lights.code[place, : len(state.lane_id)], known_lights(state.state, state.observed, 9).code
        )

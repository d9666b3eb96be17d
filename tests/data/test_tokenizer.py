"""Tokenizer: round trips, equivariance, gaps, jumps, late starts; brute force as the truth for matching."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batch import collate
from data.geometry import rotate, wrap_angle
from data.scene import AgentType
from data.scenes_source import open_scenes
from data.tokenizer import (
    apply_token,
    extend_back,
    match_token,
    retokenisation_error,
    scene_origin,
    tokenize_motion,
    tokenize_noisy,
    tokenize_scene,
)
from data.vocabulary import Vocabulary, VocabularyConfig, build_vocabulary, type_index
from tests.data.test_vocabulary import distance_by_hand
from tests.models.scenes import random_scene


def vocabulary_of(token_steps, size=80):
    scenes = [random_scene(seed) for seed in range(4)]
    return build_vocabulary(scenes, VocabularyConfig(size=size, token_steps=token_steps), seed=0)


VOCABULARIES = {steps: vocabulary_of(steps) for steps in (2, 5)}


def execute(vocabulary, start, ids, types):
    """Motion [A, 1 + N * token_steps, 3] of token sequences [A, N]."""
    poses = [start.unsqueeze(1)]
    for index in range(ids.shape[1]):
        poses.append(apply_token(vocabulary, poses[-1][:, -1], ids[:, index], types))
    return torch.cat(poses, dim=1)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    token_steps=st.sampled_from((2, 5)),
    agents=st.integers(1, 5),
    where=st.floats(-300, 300),
    data=st.data(),
)
def test_executed_motion_gives_the_same_ids_and_poses(seed, token_steps, agents, where, data):
    vocabulary = VOCABULARIES[token_steps]
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary.size, (agents, 90 // token_steps), generator=generator)
    types = torch.randint(3, (agents,), generator=generator)
    angle = data.draw(st.floats(-math.pi, math.pi))
    start = torch.tensor([where, -where, angle]).expand(agents, 3)
    motion = execute(vocabulary, start, ids, types)
    tokens = tokenize_motion(vocabulary, motion, torch.ones(motion.shape[:2], dtype=torch.bool), types)
    assert torch.equal(tokens.ids, ids)
    assert bool(tokens.valid.all())
    torch.testing.assert_close(tokens.poses[..., :2], motion[:, ::token_steps, :2], atol=2e-3, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000), angle=st.floats(-math.pi, math.pi), x=st.floats(-500, 500), y=st.floats(-500, 500)
)
def test_tokens_do_not_depend_on_where_the_motion_is(seed, angle, x, y):
    # In double precision, as float32 rounding tips ties.
    single = VOCABULARIES[2]
    vocabulary = Vocabulary(single.poses.double(), single.box.double(), single.tolerance)
    agents = random_scene(seed, origin=(0.0, 0.0)).agents
    types = type_index(agents.type)
    pose = torch.cat((agents.position[..., :2], agents.heading[..., None]), dim=-1).double()
    turned = torch.cat((rotate(pose[..., :2], torch.tensor(angle).double()), pose[..., 2:] + angle), dim=-1)
    turned = turned + torch.tensor([x, y, 0.0])
    before = tokenize_motion(vocabulary, pose, agents.valid, types)
    after = tokenize_motion(vocabulary, turned, agents.valid, types)
    assert torch.equal(before.ids, after.ids)
    assert torch.equal(before.valid, after.valid)
    back = rotate(after.poses[..., :2] - torch.tensor([x, y]), torch.tensor(-angle).double())
    torch.testing.assert_close(back, before.poses[..., :2], atol=1e-4, rtol=0)


def test_matching_is_the_brute_force_nearest():
    vocabulary = VOCABULARIES[2]
    generator = torch.Generator().manual_seed(5)
    pose = torch.randn(12, 3, generator=generator) * torch.tensor([20.0, 20.0, 1.0])
    target = pose + torch.randn(12, 3, generator=generator) * torch.tensor([0.5, 0.5, 0.1])
    types = torch.arange(12) % 3
    ids, distance = match_token(vocabulary, pose, target, types)
    for row in range(12):
        box = vocabulary.box[types[row]].tolist()
        ends = apply_token(
            vocabulary, pose[row].expand(vocabulary.size, 3), torch.arange(vocabulary.size), types[row]
        )[:, -1]
        brute = [distance_by_hand(end.tolist(), target[row].tolist(), box) for end in ends]
        assert brute[int(ids[row])] == pytest.approx(min(brute), abs=1e-5)
        assert float(distance[row]) == pytest.approx(min(brute), abs=1e-5)


def test_rolling_matching_does_not_add_up_errors():
    """At a speed between those of two tokens, rounding every segment alone would drift further every token."""
    vocabulary = VOCABULARIES[2]
    types = torch.zeros(1, dtype=torch.long)
    pose = torch.zeros(1, 91, 3)
    pose[0, :, 0] = torch.arange(91) * 0.703
    tokens = tokenize_motion(vocabulary, pose, torch.ones(1, 91, dtype=torch.bool), types)
    error = (tokens.poses[0, :, 0] - pose[0, ::2, 0]).abs()
    alone, _ = match_token(vocabulary, pose[:, 0], pose[:, 2], types)
    step = float(apply_token(vocabulary, pose[:, 0], alone, types)[0, -1, 0])
    assert float(error.max()) < 0.2 * abs(45 * step - 63.27)


def test_poses_are_where_the_tokens_lead():
    vocabulary = VOCABULARIES[2]
    scene = random_scene(4)
    types = type_index(scene.agents.type)
    tokens = tokenize_scene(vocabulary, scene, scene_origin(scene))
    led = apply_token(vocabulary, tokens.poses[:, :-1], tokens.ids, types[:, None].expand_as(tokens.ids))[
        ..., -1, :
    ]
    chained = tokens.valid.clone()
    chained[:, 4] = False  # the token that ends at the current step, where matching starts again
    assert torch.equal(led[chained], tokens.poses[:, 1:][chained])


def test_gap_restarts_from_the_recorded_pose():
    vocabulary = VOCABULARIES[2]
    scene = random_scene(1)
    tokens = tokenize_scene(vocabulary, scene, torch.zeros(2))
    # Agent 2 is unseen at steps 31 to 43: boundaries 16 to 21 are missing, tokens 15 to 21 impossible.
    assert tokens.valid[2].nonzero().squeeze(-1).tolist() == [n for n in range(45) if not 15 <= n <= 21]
    assert tokens.ids[2, 15:22].tolist() == [0] * 7
    torch.testing.assert_close(tokens.poses[2, 22, :2], scene.agents.position[2, 44, :2])
    assert not bool(tokens.pose_valid[2, 16:22].any())


def test_current_pose_is_the_recorded_one():
    for steps, vocabulary in VOCABULARIES.items():
        scene = random_scene(2)
        tokens = tokenize_scene(vocabulary, scene, torch.zeros(2))
        torch.testing.assert_close(tokens.poses[:, 10 // steps, :2], scene.agents.position[:, 10, :2])
        torch.testing.assert_close(tokens.poses[:, 10 // steps, 2], scene.agents.heading[:, 10])


@pytest.mark.parametrize("what", ["heading", "position"])
def test_jumps_are_gaps(what):
    vocabulary = VOCABULARIES[2]
    scene = random_scene(3)
    if what == "heading":
        scene.agents.heading[0, 50] = wrap_angle(scene.agents.heading[0, 50] + math.pi)
    else:
        scene.agents.position[0, 50, :2] += 6.0
    tokens = tokenize_scene(vocabulary, scene, torch.zeros(2))
    assert (~tokens.valid[0]).nonzero().squeeze(-1).tolist() == [24, 25]
    torch.testing.assert_close(tokens.poses[0, 26, :2], scene.agents.position[0, 52, :2])


@pytest.mark.parametrize("token_steps", [2, 5])
@pytest.mark.parametrize("first", range(14))
def test_late_first_steps_have_one_token_of_history(token_steps, first):
    pose = torch.zeros(1, 91, 3)
    pose[0, :, 0] = torch.arange(91) * 0.4
    velocity = torch.tensor([4.0, 0.0]).expand(1, 91, 2)
    valid = torch.arange(91)[None] >= first
    longer, seen = extend_back(pose.where(valid[..., None], torch.zeros(())), velocity, valid, token_steps)
    start = int(seen.long().argmax())
    assert start % token_steps == 0
    assert start <= first
    assert first - start <= token_steps
    if first == 10:
        assert start == 10 - token_steps
    torch.testing.assert_close(longer[0, start:], pose[0, start:], atol=1e-4, rtol=0)
    tokens = tokenize_motion(VOCABULARIES[token_steps], longer, seen, torch.zeros(1, dtype=torch.long))
    if first <= 10:
        assert bool(tokens.valid[0, 10 // token_steps - 1]), "no history at the current step"


def test_never_valid_agents_stay_so():
    valid = torch.zeros(2, 91, dtype=torch.bool)
    _, seen = extend_back(torch.zeros(2, 91, 3), torch.zeros(2, 91, 2), valid, 2)
    assert not bool(seen.any())


def test_batch_equals_single_scenes():
    scenes = [random_scene(seed, agents=count) for seed, count in ((0, 3), (1, 6), (2, 5))]
    batch = collate(scenes)
    tokens = tokenize_scene(VOCABULARIES[5], batch, scene_origin(batch))
    for row, scene in enumerate(scenes):
        alone = tokenize_scene(VOCABULARIES[5], scene, scene_origin(scene))
        count = len(scene.agents.id)
        assert torch.equal(tokens.ids[row, :count], alone.ids)
        assert torch.equal(tokens.valid[row, :count], alone.valid)
        assert not bool(tokens.valid[row, count:].any())


def test_eleven_steps_are_enough():
    scene = random_scene(0, steps=11)
    tokens = tokenize_scene(VOCABULARIES[2], scene, scene_origin(scene))
    assert tokens.ids.shape == (6, 5)
    whole = tokenize_scene(VOCABULARIES[2], random_scene(0), scene_origin(scene))
    assert torch.equal(tokens.ids, whole.ids[:, :5])


def test_anchor_must_be_on_a_boundary():
    with pytest.raises(ValueError, match="boundary"):
        tokenize_motion(
            VOCABULARIES[5],
            torch.zeros(1, 91, 3),
            torch.ones(1, 91, dtype=torch.bool),
            torch.zeros(1, dtype=torch.long),
            anchor=12,
        )


def test_error_report_is_zero_for_executed_motion_and_right_for_a_known_offset():
    vocabulary = VOCABULARIES[2]
    scene = random_scene(0, agents=1)
    ids = torch.zeros(1, 45, dtype=torch.long)
    motion = execute(vocabulary, torch.tensor([[5.0, 6.0, 0.5]]), ids, torch.zeros(1, dtype=torch.long))
    scene.agents.position[..., :2], scene.agents.heading[:] = motion[..., :2], motion[..., 2]
    figures = retokenisation_error([scene], vocabulary)
    assert figures["vehicle_position_p99_m"] < 1e-4
    assert figures["vehicle_steps"] == 90
    assert figures["vehicle_jump_share"] == 0
    assert "cyclist_position_mean_m" not in figures
    # 2 cm beside a parked vehicle is nearer than any other token: the error is exactly that, where not restarted.
    scene.agents.position[0, 1::2, 1] += 0.02
    figures = retokenisation_error([scene], vocabulary)
    assert figures["vehicle_position_mean_m"] == pytest.approx(0.01, abs=1e-4)


@pytest.mark.womd
def test_real_motion_is_followed_closely(womd: Path):
    source = open_scenes(womd, "validation")
    scenes = [source[index] for index in range(0, len(source), 6)]
    vocabulary = build_vocabulary(scenes, VocabularyConfig(), seed=0)
    figures = retokenisation_error(scenes, vocabulary)
    assert figures["vehicle_position_mean_m"] < 0.05
    assert figures["vehicle_jump_share"] < 0.01


def test_error_report_of_headings_and_jumps():
    """Headings turned by 0.01 rad at every second step of a parked vehicle, and one jump in 45 segments."""
    scene = random_scene(0, agents=1)
    scene.agents.position[0], scene.agents.heading[0], scene.agents.velocity[0] = (
        scene.agents.position[0, :1],
        0.5,
        0.0,
    )
    scene.agents.heading[0, 1::2] += 0.01
    figures = retokenisation_error([scene], VOCABULARIES[2])
    assert figures["vehicle_heading_mean_deg"] == pytest.approx(math.degrees(0.005), rel=1e-3)
    assert figures["vehicle_heading_p99_deg"] == pytest.approx(math.degrees(0.01), rel=1e-3)
    scene.agents.position[0, 50, :2] += 6.0
    figures = retokenisation_error([scene], VOCABULARIES[2])
    assert figures["vehicle_jump_share"] == pytest.approx(2 / 45)
    assert figures["vehicle_steps"] == 86


def test_types_that_do_not_occur_are_left_out_of_the_error_report():
    scene = random_scene(0, agents=1)
    scene.agents.type[0] = int(AgentType.CYCLIST)
    figures = retokenisation_error([scene], VOCABULARIES[2])
    assert {name.partition("_")[0] for name in figures} == {"cyclist"}
    assert len(figures) == 6


def test_scenes_are_centred_on_those_that_are_there_now():
    scene = random_scene(0, agents=3)
    scene.agents.valid[2, 10] = False
    scene.agents.position[2] += 1000.0
    expected = scene.agents.position[:2, 10, :2].double().mean(0).float()
    torch.testing.assert_close(scene_origin(scene), expected)
    torch.testing.assert_close(scene_origin(collate([scene, random_scene(1, agents=5)]))[0], expected)


def test_straying_takes_the_wanted_one_of_the_nearest_tokens():
    """Rank by brute force from where the tokens led, and what is learnt is the nearest from there."""
    vocabulary, scene = VOCABULARIES[2], random_scene(5, agents=3)
    types = type_index(scene.agents.type)
    pose = torch.cat((scene.agents.position[..., :2] - 900.0, scene.agents.heading[..., None]), dim=-1)
    valid = torch.ones(3, 91, dtype=torch.bool)
    rank = torch.randint(4, (3, 45), generator=torch.Generator().manual_seed(0))
    tokens, nearest = tokenize_noisy(vocabulary, pose, valid, types, rank, anchor=None, max_jump=100.0)
    assert bool(tokens.valid.all())
    for agent, number in ((0, 0), (1, 13), (2, 44)):
        box = vocabulary.box[types[agent]].tolist()
        every = torch.arange(vocabulary.size)
        start = tokens.poses[agent, number].expand(vocabulary.size, 3)
        ends = apply_token(vocabulary, start, every, types[agent])[:, -1]
        target = pose[agent, 2 * number + 2].tolist()
        order = sorted(every.tolist(), key=lambda token: distance_by_hand(ends[token].tolist(), target, box))
        assert int(tokens.ids[agent, number]) == order[int(rank[agent, number])]
        assert int(nearest[agent, number]) == order[0]
        torch.testing.assert_close(
            tokens.poses[agent, number + 1], ends[tokens.ids[agent, number]], atol=1e-4, rtol=0
        )

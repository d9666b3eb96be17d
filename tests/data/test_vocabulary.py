"""Vocabulary: size, separation, coverage and determinism, on few and on many samples."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from data.scene import AgentType
from data.scenes_source import open_scenes
from data.vocabulary import (
    Vocabulary,
    VocabularyConfig,
    _k_disks,
    _Pool,
    _separate,
    build_vocabulary,
    corner_distance,
    mine_segments,
    pose_corners,
    type_index,
)
from tests.models.scenes import random_scene


@pytest.fixture(scope="module")
def scenes():
    return [random_scene(seed) for seed in range(6)]


def corners_by_hand(pose, length, width):
    """Corners of a box by the definition, in plain Python."""
    x, y, heading = pose
    cos, sin = math.cos(heading), math.sin(heading)
    offsets = [
        (length / 2, width / 2),
        (-length / 2, width / 2),
        (-length / 2, -width / 2),
        (length / 2, -width / 2),
    ]
    return [(x + dx * cos - dy * sin, y + dx * sin + dy * cos) for dx, dy in offsets]


def distance_by_hand(first, second, box):
    pairs = zip(corners_by_hand(first, *box), corners_by_hand(second, *box), strict=True)
    return sum(math.dist(a, b) for a, b in pairs) / 4


def test_corner_distance_equals_the_definition():
    generator = torch.Generator().manual_seed(0)
    poses = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    box = torch.tensor([4.8, 2.0], dtype=torch.float64)
    for first, second in itertools.pairwise(poses):
        found = corner_distance(pose_corners(first, box), pose_corners(second, box))
        assert float(found) == pytest.approx(distance_by_hand(first.tolist(), second.tolist(), (4.8, 2.0)))


@pytest.mark.parametrize(("size", "token_steps"), [(40, 2), (150, 5), (300, 2)])
def test_every_type_has_exactly_k_separate_tokens(scenes, size, token_steps):
    config = VocabularyConfig(size=size, token_steps=token_steps)
    vocabulary = build_vocabulary(scenes, config, seed=3)
    assert vocabulary.poses.shape == (3, size, token_steps, 3)
    assert (vocabulary.size, vocabulary.token_steps) == (size, token_steps)
    assert bool((vocabulary.poses[:, 0] == 0).all()), "token 0 is standing still"
    for index in range(3):
        corners = vocabulary.corners[index]
        distance = corner_distance(corners[:, None], corners[None]).fill_diagonal_(math.inf)
        assert float(distance.min()) > 1e-3, "two tokens are one motion"


def test_means_that_come_close_go_back_to_their_centres():
    box = torch.tensor([4.8, 2.0])
    centres = torch.tensor([0.0, 1.0, 2.2, 5.0])[:, None, None] * torch.tensor([1.0, 0.0, 0.0])
    means = torch.tensor([0.0, 1.45, 1.55, 5.2])[:, None, None] * torch.tensor([1.0, 0.0, 0.0])
    tokens = _separate(means, centres, box, tolerance=1.0)
    assert tokens[:, 0, 0].tolist() == pytest.approx([0.0, 1.0, 2.2, 5.2])


def test_types_without_any_sample_get_plausible_motions():
    scene = random_scene(0, agents=1)
    vocabulary = build_vocabulary([scene], VocabularyConfig(size=60), seed=0)
    speed = vocabulary.poses[1, :, -1, :2].norm(dim=-1) / 0.2
    assert float(speed.max()) <= 3.01
    assert float(speed.max()) > 1.0
    # An arc: the chord points along half of the turn.
    moving = vocabulary.poses[1, speed > 0.1, -1]
    torch.testing.assert_close(torch.atan2(moving[:, 1], moving[:, 0]), moving[:, 2] / 2, atol=1e-4, rtol=0)


def test_no_scene_at_all_still_gives_a_vocabulary():
    vocabulary = build_vocabulary([], VocabularyConfig(size=20), seed=0)
    assert bool(vocabulary.poses.isfinite().all())


def test_tokens_cover_the_wanted_share_of_moving_segments(scenes):
    config = VocabularyConfig(size=60, coverage=0.97, mirror=False)
    vocabulary = build_vocabulary(scenes, config, seed=0)
    poses, types = (torch.cat(parts) for parts in zip(*(mine_segments(scene, 2) for scene in scenes), strict=True))
    for index in range(3):
        ends = pose_corners(poses[types == index][:, -1], vocabulary.box[index])
        distance = corner_distance(ends[:, None], vocabulary.corners[index][None]).amin(-1)
        # A member of a disk is within the tolerance of its centre, and so within twice that of the mean.
        assert float((distance <= 2 * vocabulary.tolerance[index]).double().mean()) >= config.coverage


def test_smaller_vocabularies_need_larger_tolerances(scenes):
    few, many = (build_vocabulary(scenes, VocabularyConfig(size=size), seed=0).tolerance for size in (8, 200))
    assert bool((few > 1.5 * many).all())


def test_segments_are_seen_from_their_start(scenes):
    scene = scenes[0]
    poses, types = mine_segments(scene, 5)
    expected = []
    for agent, start in itertools.product(range(6), range(0, 86, 5)):
        if not bool(scene.agents.valid[agent, start : start + 6].all()):
            continue
        x, y, _ = (scene.agents.position[agent, start + 5] - scene.agents.position[agent, start]).tolist()
        heading = float(scene.agents.heading[agent, start])
        expected.append(
            (x * math.cos(heading) + y * math.sin(heading), y * math.cos(heading) - x * math.sin(heading))
        )
    torch.testing.assert_close(poses[:, -1, :2], torch.tensor(expected), atol=1e-3, rtol=0)
    assert len(types) == len(expected)


def test_errors_of_the_recording_are_no_motion():
    scene = random_scene(0)
    clean = len(mine_segments(scene, 2)[0])
    scene.agents.position[0, 41] += 30.0
    scene.agents.heading[5, 61] += 3.0
    assert len(mine_segments(scene, 2)[0]) == clean - 2


def test_same_seed_same_vocabulary(scenes, tmp_path: Path):
    first, second, other = (build_vocabulary(scenes, VocabularyConfig(size=50), seed=s) for s in (1, 1, 2))
    assert torch.equal(first.poses, second.poses)
    assert not torch.equal(first.poses, other.poses)
    first.save(tmp_path / "a.pt")
    second.save(tmp_path / "b.pt")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    loaded = Vocabulary.load(tmp_path / "a.pt")
    assert torch.equal(loaded.poses, first.poses)
    assert torch.equal(loaded.tolerance, first.tolerance)


def test_pool_is_bounded_and_a_sample(scenes):
    limited = build_vocabulary(scenes * 3, VocabularyConfig(size=30, max_segments=100), seed=0)
    assert bool(limited.poses.isfinite().all())
    assert float(limited.poses[0, :, -1, 0].max()) > 0.5


def test_type_index():
    kinds = torch.tensor([AgentType.VEHICLE, AgentType.PEDESTRIAN, AgentType.CYCLIST, AgentType.OTHER, 0])
    assert type_index(kinds).tolist() == [0, 1, 2, 0, 0]


@pytest.mark.parametrize("changes", [{"token_steps": 3}, {"token_steps": 0}, {"size": 1}, {"coverage": 0.0}])
def test_impossible_configurations_are_refused(changes):
    with pytest.raises(UserError):
        VocabularyConfig(**changes)


def test_wrong_files_are_named(tmp_path: Path):
    with pytest.raises(UserError, match="no such vocabulary"):
        Vocabulary.load(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"other": 1}, tmp_path / "other.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    for name in ("text.pt", "other.pt", "tensor.pt"):
        with pytest.raises(UserError, match=name):
            Vocabulary.load(tmp_path / name)
    torch.save({"kind": "reference", "format": 1, "vocabulary": {}}, tmp_path / "reference.ckpt")
    with pytest.raises(
        UserError, match=r"reference.ckpt: a checkpoint of a reference, not a motion vocabulary; give"
    ):
        Vocabulary.load(tmp_path / "reference.ckpt")


@pytest.mark.womd
def test_real_segments_are_covered(womd: Path):
    source = open_scenes(womd, "training")
    scenes = [source[index] for index in range(0, len(source), 32)]
    vocabulary = build_vocabulary(scenes, VocabularyConfig(), seed=0)
    assert float(vocabulary.tolerance[0]) < 0.15
    poses, types = (torch.cat(parts) for parts in zip(*(mine_segments(s, 2) for s in scenes), strict=True))
    ends = pose_corners(poses[types == 0][:, -1], vocabulary.box[0])
    near = torch.cat([corner_distance(e[:, None], vocabulary.corners[0][None]).amin(-1) for e in ends.split(4096)])
    assert float((near <= 2 * vocabulary.tolerance[0]).double().mean()) > 0.995


@pytest.mark.womd
def test_real_tokens_stay_apart(womd: Path):
    source = open_scenes(womd, "training")
    scenes = [source[index] for index in range(0, len(source), 32)]
    vocabulary = build_vocabulary(scenes, VocabularyConfig(token_steps=5), seed=0)
    for corners, tolerance in zip(vocabulary.corners, vocabulary.tolerance, strict=True):
        distance = corner_distance(corners[:, None], corners[None]).fill_diagonal_(math.inf)
        assert float(distance.min()) >= 0.5 * float(tolerance)


def test_segments_of_which_a_single_step_is_impossible_are_left_out():
    """A shift of 5 m, or of half a radian, in one step: the mean over the two steps would pass."""
    scene = random_scene(0)
    clean = len(mine_segments(scene, 2)[0])
    scene.agents.position[0, 41:, :2] += 5.0
    scene.agents.heading[5, 61:] += 0.5
    assert len(mine_segments(scene, 2)[0]) == clean - 2


def test_mirrored_motion_is_motion():
    """Of a scene that only turns left, every token that turns goes to the side that it turns to, and both occur."""
    scene = random_scene(0, agents=1)
    time = 0.1 * torch.arange(91)
    scene.agents.heading[0] = 0.4 * time
    scene.agents.position[0, :, 0], scene.agents.position[0, :, 1] = (
        20 * (0.4 * time).sin(),
        -20 * (0.4 * time).cos(),
    )
    vocabulary = build_vocabulary([scene], VocabularyConfig(size=3, coverage=0.9), seed=0)
    x, y, heading = vocabulary.ends[0, 1:].unbind(-1)
    assert sorted(heading.sign().tolist()) == [-1.0, 1.0]
    assert torch.equal(y.sign(), heading.sign())
    torch.testing.assert_close(x, torch.full((2,), 1.6), atol=0.01, rtol=0)
    alone = build_vocabulary([scene], VocabularyConfig(size=2, coverage=0.9, mirror=False), seed=0)
    assert float(alone.ends[0, 1, 2]) > 0


def test_a_pool_is_a_uniform_sample_of_all_that_was_added():
    pool = _Pool(200, torch.Generator().manual_seed(0))
    for first in range(0, 5000, 50):
        pool.add(torch.arange(first, first + 50.0).view(-1, 1, 1))
    values = pool.sample().flatten()
    assert values.unique().numel() == 200
    # Standard deviation of the mean 102, of a uniform sample.
    assert 2100 < float(values.mean()) < 2900
    assert float(values.std()) == pytest.approx(5000 / 12**0.5, rel=0.1)
    assert float(values[:100].mean()) == pytest.approx(2500, abs=500), "in random order"


def test_headings_on_both_sides_of_half_a_turn_have_their_mean_there():
    segments = torch.zeros(4, 1, 3)
    segments[1:, 0, 2] = torch.tensor([math.pi - 0.02, -math.pi + 0.02, math.pi - 0.01])
    tokens, share = _k_disks(segments, torch.tensor([1.0, 1.0]), 2, 0.1)
    assert share == 1.0
    assert abs(math.remainder(float(tokens[1, 0, 2]) - math.pi, 2 * math.pi)) < 0.011

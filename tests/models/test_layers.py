"""Relation encoder: sees relative poses alone, and nothing jumps where an angle wraps."""

from __future__ import annotations

import math

import pytest
import torch

from data.geometry import rotate
from models.layers import FeedForward, RelationEncoder


def encoder(**arguments):
    torch.manual_seed(0)
    return RelationEncoder(16, reach=50.0, octaves=5, **arguments).double()


def poses(count):
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([30.0, 30.0, 2.0]).double()
    return torch.randn(count, 3, generator=generator, dtype=torch.float64) * scale


def test_waves_are_sines_and_cosines_of_both_coordinates():
    module = encoder()
    offset = torch.tensor([3.0, -7.0]).double()
    seen: list[torch.Tensor] = []
    module.waves.register_forward_hook(lambda _, inputs, __: seen.extend(inputs))
    module(torch.cat((offset, torch.zeros(1))), torch.zeros(3).double())
    waves = seen[0].tolist()
    expected = []
    for value in (3.0, -7.0):
        angles = [math.pi / 50.0 * 2**octave * value for octave in range(5)]
        expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    assert sorted(round(w, 5) for w in waves) == sorted(round(w, 5) for w in expected)


def test_only_relative_poses_matter():
    module, source, target = encoder(), poses(9), poses(9).flip(0)
    angle = torch.tensor(0.7).double()

    def moved(pose):
        position = rotate(pose[:, :2], angle) + torch.tensor([11.0, -4.0])
        return torch.cat((position, pose[:, 2:] + angle), dim=-1)

    torch.testing.assert_close(module(source, target), module(moved(source), moved(target)))
    assert not torch.allclose(module(source, target), module(moved(source), target))


def test_no_jump_where_headings_wrap():
    module = encoder()
    target = torch.zeros(1, 3).double()
    below, above = (torch.tensor([[4.0, 1.0, angle]]).double() for angle in (math.pi - 1e-6, -math.pi + 1e-6))
    torch.testing.assert_close(module(below, target), module(above, target), atol=1e-4, rtol=0)


def test_no_jump_where_the_bearing_wraps_and_finite_in_one_place():
    module = encoder()
    target = torch.zeros(1, 3).double()
    left, right = (torch.tensor([[-4.0, y, 0.0]]).double() for y in (1e-6, -1e-6))
    torch.testing.assert_close(module(left, target), module(right, target), atol=1e-4, rtol=0)
    assert bool(module(target, target).isfinite().all())


def test_slots_and_bias_are_added():
    module = encoder(slots=3)
    source, target = poses(3).unsqueeze(0), poses(3)[:1].unsqueeze(1)
    plain = module(source, target)
    with torch.no_grad():
        module.slot.copy_(torch.ones(3, 16) * torch.tensor([[0.0], [1.0], [2.0]]))
    assert torch.equal(module(source, target)[0, 0], plain[0, 0])
    assert not torch.allclose(module(source, target)[0, 1], plain[0, 1])
    biased = module(source, target, torch.full((16,), 1000.0))
    assert bool((biased > 900).all())


def test_feed_forward_treats_rows_alone():
    torch.manual_seed(0)
    module = FeedForward(8, dropout=0.0)
    x = torch.randn(4, 8)
    torch.testing.assert_close(module(x)[2], module(x[2]))


def test_edges_are_described_by_their_formula():
    """x, y and distance over the reach, the unit vector, cosine and sine of the turn: near by, and far away."""
    module = encoder()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        # Positive and negative parts, since what is negative is cut off.
        module.plain.weight[:7], module.plain.weight[7:14] = torch.eye(7), -torch.eye(7)
    source = torch.tensor([[6.0, 8.0, 2.0], [1.0, 0.5, -1.0], [40.0, -3.0, 0.0]]).double()
    target = torch.tensor([[0.0, 0.0, 0.7], [1.2, 0.6, 0.5], [-20.0, 9.0, 3.0]]).double()
    encoded = module(source, target)
    found = encoded[:, :7] - encoded[:, 7:14]
    for row in range(3):
        sx, sy, turned = source[row].tolist()
        tx, ty, heading = target[row].tolist()
        seen = complex(sx - tx, sy - ty) * math.e ** complex(0, -heading)
        size, turn = abs(seen), turned - heading
        expected = [seen.real / 50, seen.imag / 50, size / 50, seen.real / size, seen.imag / size]
        assert found[row].tolist() == pytest.approx([*expected, math.cos(turn), math.sin(turn)], abs=1e-9)

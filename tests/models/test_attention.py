"""Neighbour-list attention against dense masked attention written out, and neighbour search by brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.attention import RelativeAttention, gather_rows, k_nearest, neighbour_lists

WIDTH, HEADS, RELATION = 12, 3, 5


@pytest.fixture
def attention():
    torch.manual_seed(0)
    module = RelativeAttention(WIDTH, HEADS, RELATION, dropout=0.0).double()
    torch.nn.init.normal_(module.sink)
    return module


def dense(module, target, source, relation, mask):
    """softmax(q (k + Wk r) / sqrt(d)) (v + Wv r) with keys and values made for every edge, head by head.

    target [S, D], source [S, J, D] (unprojected), relation [S, J, F], mask [S, J].
    """
    each = WIDTH // HEADS
    query = module.query(module.norm_target(target))
    keys, values = module.source(module.norm_source(source)).split(WIDTH, dim=-1)
    outputs = []
    for head in range(HEADS):
        part = slice(head * each, (head + 1) * each)
        key = keys[..., part] + relation @ module.relation_key[head].T
        value = values[..., part] + relation @ module.relation_value[head]
        score = (query[:, None, part] * key).sum(-1) / math.sqrt(each)
        exponent = torch.where(mask, score.exp(), torch.zeros(()).double())
        weight = exponent / (exponent.sum(-1, keepdim=True) + module.sink[head].exp())
        outputs.append((weight.unsqueeze(-1) * value).sum(-2))
    return module.output(torch.cat(outputs, dim=-1))


def sources_of(module, source):
    return module.by_head(module.sources(source))


def bias_of(mask):
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -math.inf)


def inputs(targets=7, sources=9):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return (
        draw(targets, WIDTH),
        draw(sources, WIDTH),
        draw(targets, sources, RELATION),
        draw(targets, sources) > -0.3,
    )


def test_all_sources_in_order(attention):
    target, source, relation, mask = inputs()
    found = attention(target, sources_of(attention, source), relation, bias_of(mask))
    expected = dense(attention, target, source.expand(7, 9, WIDTH), relation, mask)
    torch.testing.assert_close(found, expected)


def test_neighbour_lists_equal_dense_masked_attention(attention):
    target, source, relation, _ = inputs()
    generator = torch.Generator().manual_seed(2)
    index = torch.stack([torch.randperm(9, generator=generator)[:4] for _ in range(7)])
    listed = torch.rand(7, 4, generator=generator) > 0.2
    mask = torch.zeros(7, 9, dtype=torch.bool).scatter(1, index, listed)
    picked = relation.gather(1, index.unsqueeze(-1).expand(-1, -1, RELATION))
    found = attention(target, sources_of(attention, source), picked, bias_of(listed), index)
    torch.testing.assert_close(found, dense(attention, target, source.expand(7, 9, WIDTH), relation, mask))


def test_groups_are_independent(attention):
    groups = [inputs() for _ in range(2)]
    target, source, relation, mask = (torch.stack(part) for part in zip(*groups, strict=True))
    target[1] += 1.0
    both = attention(target, sources_of(attention, source), relation, bias_of(mask))
    for row in range(2):
        alone = attention(target[row], sources_of(attention, source[row]), relation[row], bias_of(mask[row]))
        torch.testing.assert_close(both[row], alone)


def test_masked_sources_have_no_influence_and_no_sources_give_no_nan(attention):
    target, source, relation, mask = inputs()
    mask[:, 3] = False
    mask[2] = False
    found = attention(target, sources_of(attention, source), relation, bias_of(mask))
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found[2], attention.output.bias)
    source[3] += 100.0
    relation[:, 3] -= 50.0
    torch.testing.assert_close(attention(target, sources_of(attention, source), relation, bias_of(mask)), found)
    mask[0, 3] = True
    assert not torch.allclose(
        attention(target, sources_of(attention, source), relation, bias_of(mask))[0], found[0]
    )


def test_gradients_are_finite_where_nothing_is_seen(attention):
    target, source, relation, mask = inputs()
    target.requires_grad_()
    attention(target, sources_of(attention, source), relation, bias_of(torch.zeros_like(mask))).sum().backward()
    assert bool(target.grad.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in attention.parameters() if p.grad is not None)


def test_bias_is_added_to_the_scores(attention):
    """A source with the logarithm of 2 as bias counts as two equal sources."""
    target, source, relation, _ = inputs(sources=3)
    bias = torch.zeros(7, 3, dtype=torch.float64)
    bias[:, 1] = math.log(2.0)
    found = attention(target, sources_of(attention, source), relation, bias)
    twice = torch.tensor([0, 1, 1, 2])
    doubled = attention(
        target, sources_of(attention, source[twice]), relation[:, twice], torch.zeros(7, 4).double()
    )
    torch.testing.assert_close(found, doubled)


def by_brute_force(points, valid, row, count, exclude):
    """(distance, index) of the nearest, ties by index, and the distance of the first left out."""
    distances = sorted(
        (math.dist(points[row].tolist(), points[other].tolist()), other)
        for other in range(len(points))
        if bool(valid[other]) and not (exclude and other == row)
    )
    beyond = distances[count][0] if len(distances) > count else math.inf
    return distances[:count], beyond


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 12), exclude=st.booleans())
def test_neighbour_lists_are_the_brute_force_nearest(seed, count, exclude):
    generator = torch.Generator().manual_seed(seed)
    # Whole metres, so that equal distances are common.
    points = torch.randint(-5, 6, (8, 2), generator=generator).float()
    valid = torch.rand(8, generator=generator) > 0.25
    found = neighbour_lists(points, points, valid, count, radius=6.0, exclude_self=exclude)
    order, distance = k_nearest(points, points, valid, count, exclude)
    for row in range(8):
        expected, beyond = by_brute_force(points, valid, row, count, exclude)
        real = distance[row].isfinite()
        assert order[row][real].tolist() == [other for _, other in expected]
        seen = {other: min(1.0, min(6.0, beyond) - d) for d, other in expected if d < min(6.0, beyond)}
        weight = zip(found.index[row].tolist(), found.bias[row].exp().tolist(), strict=True)
        assert {other: w for other, w in weight if w > 0} == pytest.approx(seen, abs=1e-5)


def test_what_is_seen_is_continuous(attention):
    """Two sources that swap places in the ranking change the result by no more than they moved."""
    target, _, _, _ = inputs(targets=1)
    source = torch.randn(5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = []
    for shift in (-2e-4, 2e-4):
        places = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-3.0 + shift, 0.0], [3.0, 0.0], [9.0, 0.0]]).double()
        near = neighbour_lists(torch.zeros(1, 2).double(), places, torch.ones(5, dtype=torch.bool), 3, 50.0)
        relation = torch.zeros(1, 3, RELATION).double()
        results.append(
            (
                near.index,
                attention(target, sources_of(attention, source), relation, near.bias, near.index),
            )
        )
    assert results[0][0].tolist() != results[1][0].tolist()
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-3, rtol=0)


def test_neighbour_lists_do_not_depend_on_padding():
    generator = torch.Generator().manual_seed(0)
    points = torch.randint(-3, 4, (40, 2), generator=generator).float()
    alone = neighbour_lists(points, points, torch.ones(40, dtype=torch.bool), 6, 10.0)
    padded = torch.cat((points, torch.zeros(30, 2)))
    other = neighbour_lists(points, padded, torch.arange(70) < 40, 6, 10.0)
    assert torch.equal(alone.index, other.index)
    assert torch.equal(alone.bias, other.bias)


def test_gather_rows():
    values = torch.arange(24).view(2, 4, 3)
    index = torch.tensor([[[0, 3]], [[2, 2]]])
    assert gather_rows(values, index).tolist() == [
        [[values[0, 0].tolist(), values[0, 3].tolist()]],
        [[values[1, 2].tolist(), values[1, 2].tolist()]],
    ]


def test_width_must_fit_heads():
    with pytest.raises(ValueError, match="multiple"):
        RelativeAttention(10, 3, 4, 0.0)

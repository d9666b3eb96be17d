"""Inertia: logits fall with the distance of the tokens' ends from the last motion, as moved by the net."""

from __future__ import annotations

import torch

from models.layers import Inertia

ENDS = torch.randn(3, 7, 3, generator=torch.Generator().manual_seed(2))
SPREAD = torch.tensor([0.15, 0.08, 0.04])


def test_logits_are_the_formula_written_out() -> None:
    """Per agent and token, with a shift and a spread that were learnt; far from the last motion too."""
    torch.manual_seed(0)
    inertia = Inertia(5, ENDS)
    with torch.no_grad():
        inertia.change.weight.normal_(std=0.3)
    features, motion, types = torch.randn(2, 3, 5), 9 * torch.randn(2, 3, 3), torch.tensor([[0, 1, 2], [2, 2, 0]])
    logits = inertia(features, types, motion)
    assert logits.shape == (2, 3, 7)
    change = inertia.change(features).double()
    for place in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        row = tuple(place)
        middle, width = motion[row] + SPREAD * change[row][:3], SPREAD * change[row][3:].exp()
        square = ((ENDS[types[row]] - middle) / width).square().sum(-1)
        torch.testing.assert_close(logits[row].double(), 1 - (1 + square).sqrt(), atol=1e-5, rtol=1e-6)


def test_under_autocast_logits_are_those_of_full_precision() -> None:
    """In bfloat16, differences of logits near ten would be rounded to a sixteenth."""
    torch.manual_seed(0)
    inertia = Inertia(5, ENDS)
    features, motion, types = torch.randn(8, 5).bfloat16(), 9 * torch.randn(8, 3), torch.arange(8) % 3
    expected = inertia(features.float(), types, motion)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inertia(features, types, motion), expected)


def test_before_learning_the_token_that_goes_on_is_likeliest() -> None:
    torch.manual_seed(0)
    types = torch.arange(21) // 7
    logits = Inertia(5, ENDS)(torch.randn(21, 5), types, ENDS.flatten(0, 1))
    assert logits.argmax(-1).tolist() == list(range(7)) * 3


def test_spread_and_shift_are_learnt() -> None:
    """Fitting draws around a shifted motion finds the shift."""
    torch.manual_seed(0)
    ends = torch.zeros(3, 81, 3)
    ends[..., 0] = torch.linspace(-2, 2, 81)
    inertia = Inertia(1, ends)
    target = (40 + 12 + 4 * torch.randn(2000)).round().long().clamp(0, 80)  # 0.6 m further on, 0.2 m spread
    optimizer = torch.optim.Adam(inertia.parameters(), lr=0.1)
    for _ in range(200):
        logits = inertia(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 3))
        loss = torch.nn.functional.cross_entropy(logits.expand(len(target), -1), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    change = inertia.change.bias.detach()
    assert abs(float(SPREAD[0] * change[0]) - 0.6) < 0.02
    assert 0.05 < float(SPREAD[0] * change[3].exp()) < 0.3

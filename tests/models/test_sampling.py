"""Tokens are drawn with the probabilities that temperature, top-k and top-p leave."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from data.errors import UserError
from models.sampling import SamplingConfig, draw

LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.5, -3.0, 0.0])


def frequencies(config: SamplingConfig, draws: int = 40_000, kind: int = 0) -> list[float]:
    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(0))
    ids = draw(LOGITS.expand(draws, 6), uniform, torch.full((draws,), kind), config)
    counts = Counter(ids.flatten().tolist())
    return [counts[token] / draws for token in range(6)]


def by_hand(config: SamplingConfig) -> list[float]:
    """The distribution draws should have, in plain Python."""
    temperature, top_k, top_p = (values[0] for values in config.by_type)
    scaled = [math.exp(v / temperature) for v in LOGITS.tolist()]
    order = sorted(range(6), key=lambda token: -scaled[token])
    if top_k:
        order = order[: int(top_k)]
    total, kept, mass = sum(scaled[token] for token in order), [], 0.0
    for token in order:
        if mass >= top_p:
            break
        kept.append(token)
        mass += scaled[token] / total
    norm = sum(scaled[token] for token in kept)
    return [scaled[token] / norm if token in kept else 0.0 for token in range(6)]


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.5),
        SamplingConfig(top_k=3),
        SamplingConfig(top_k=1),
        SamplingConfig(top_p=0.7),
        SamplingConfig(top_p=1e-6),
        SamplingConfig(temperature=2.0, top_k=5, top_p=0.8),
        # Of the likeliest two the first has 0.62, of all tokens 0.49: the share is that of the k that are left.
        SamplingConfig(top_k=2, top_p=0.6),
        SamplingConfig(temperature=2.0, top_k=3, top_p=0.7),
    ],
)
def test_drawing_has_the_distribution_by_hand(config):
    for found, expected in zip(frequencies(config), by_hand(config), strict=True):
        assert found == pytest.approx(expected, abs=0.01)
        assert (found == 0) == (expected == 0)


def test_each_type_has_its_own():
    config = SamplingConfig(temperature=(1.0, 0.5, 2.0), top_k=(0, 3, 5), top_p=(0.7, 1.0, 0.8))
    for kind in range(3):
        temperature, top_k, top_p = config.by_type
        own = SamplingConfig(temperature[kind], int(top_k[kind]), top_p[kind])
        assert frequencies(config, 1000, kind) == frequencies(own, 1000, kind)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_drawing_at_the_ends_of_the_unit_interval(uniform):
    logits = LOGITS.masked_fill(torch.tensor([True, False, False, False, False, True]), -math.inf)
    ids = draw(logits, torch.tensor(uniform), torch.tensor(0), SamplingConfig())
    assert int(ids) == (1 if uniform == 0 else 4), "never a token of probability zero"


def test_what_has_the_probability_exactly_is_enough() -> None:
    """Two tokens of a half each: with top_p 0.5 the second one is not needed."""
    drawn = draw(torch.zeros(2), torch.tensor(0.9), torch.tensor(0), SamplingConfig(top_p=0.5))
    assert int(drawn) == 0


@pytest.mark.parametrize(
    "changes", [{"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": (1.0, 1.0, 1.5)}]
)
def test_impossible_sampling_is_refused(changes):
    with pytest.raises(UserError):
        SamplingConfig(**changes)


@pytest.mark.parametrize("config", [SamplingConfig(), SamplingConfig(temperature=2.0, top_k=5, top_p=0.8)])
def test_everything_is_made_where_the_logits_are(config):
    """On a device without numbers, which takes no tensors of another one, as a GPU does not."""
    logits, uniform = torch.empty(4, 6, device="meta"), torch.empty(4, device="meta")
    ids = draw(logits, uniform, torch.zeros(4, dtype=torch.int64, device="meta"), config)
    assert (ids.device.type, ids.shape, ids.dtype) == ("meta", (4,), torch.int64)

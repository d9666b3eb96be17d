"""A small vocabulary and randomly weighted references for both token lengths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from data.vocabulary import VocabularyConfig, build_vocabulary
from models.reference.config import ReferenceConfig
from models.reference.engine import Unrolling
from models.reference.network import Reference
from tests.models.scenes import random_scene

CONFIG = ReferenceConfig(
    hidden=16,
    heads=2,
    relation=8,
    layers=2,
    map_layers=2,
    piece_neighbours=6,
    map_neighbours=9,
    agent_neighbours=3,
)


def roll_out(
    unrolling: Unrolling, tokens: int, choose: Callable[[int, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N, A, M, K], tokens [N, A, M] and poses [N, A, M, s, 3], with tokens chosen by (number, logits)."""
    logits, ids, poses = [], [], []
    for number in range(tokens):
        logits.append(unrolling.logits())
        ids.append(choose(number, logits[-1]))
        poses.append(unrolling.execute(ids[-1]))
    return torch.stack(logits, 2), torch.stack(ids, 2), torch.stack(poses, 2)


def make_model(token_steps: int, config: ReferenceConfig = CONFIG) -> Reference:
    """Weights far from their initial values, so that every path of the network matters."""
    scenes = [random_scene(seed) for seed in range(3)]
    vocabulary = build_vocabulary(scenes, VocabularyConfig(size=40, token_steps=token_steps), seed=0)
    torch.manual_seed(1)
    model = Reference(config, vocabulary)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session", params=[2, 5], ids=["5Hz", "2Hz"])
def model(request) -> Reference:
    return make_model(request.param)


@pytest.fixture(scope="session")
def fast_model() -> Reference:
    return make_model(5)

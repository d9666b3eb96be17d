"""The metric inside a training: a LightningModule logs it from its validation step."""

from __future__ import annotations

from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from submission.realism import SceneContext, load_config, prepare_scene, score, score_states
from submission.realism.score import align
from tests.submission.realism.branches import BRANCHES
from tests.submission.realism.trainer import quiet_trainer

_NAMES = ("mixed_traffic", "ties", "lights")


class _Prepared(Dataset[tuple[SceneContext, Tensor]]):
    """Scenes prepared once, and states in their agents' order."""

    def __init__(self) -> None:
        self.items = []
        for name in _NAMES:
            scene, states = BRANCHES[name]()
            context = prepare_scene(scene)
            self.items.append((context, align(context, scene.agents.id[scene.simulated], states)))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[SceneContext, Tensor]:
        return self.items[index]


class _Model(lightning.LightningModule):
    """A simulator that is off by a learnable distance."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(4))
        self.config = load_config("2025")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return [(context.to(device), states.to(device)) for context, states in batch]

    def validation_step(self, batch: list[tuple[SceneContext, Tensor]], batch_idx: int) -> None:
        for context, states in batch:
            values = score_states(context, states + self.shift.detach(), self.config).values
            self.log_dict({f"validation/{name}": value for name, value in values.items()}, batch_size=1)


def test_validation_step_logs_the_metric(tmp_path: Any) -> None:
    trainer = quiet_trainer(tmp_path)
    loader = DataLoader(_Prepared(), batch_size=1, collate_fn=list)
    (logged,) = trainer.validate(_Model(), loader, verbose=False)
    scores = []
    for name in _NAMES:
        scene, states = BRANCHES[name]()
        result = score(prepare_scene(scene), scene.agents.id[scene.simulated], states, load_config("2025"))
        scores.append(float(result.values["metametric"]))
    assert logged["validation/metametric"] == pytest.approx(sum(scores) / len(scores), abs=1e-6)


def test_several_scenes_need_no_host_in_between() -> None:
    """Values stay tensors on the device until somebody reads them, so that scenes queue up behind each other."""
    config, items = load_config("2025"), _Prepared().items
    values = [score_states(*item, config).values["metametric"] for item in items]
    assert all(isinstance(value, Tensor) and value.shape == () for value in values)

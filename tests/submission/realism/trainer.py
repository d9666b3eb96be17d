"""A trainer of Lightning that says and keeps nothing."""

from __future__ import annotations

from pathlib import Path

import lightning


def quiet_trainer(folder: Path) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )

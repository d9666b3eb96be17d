"""The log of a training: TensorBoard, with films of the model, the progress bar, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from data.files import write_text
from data.scene import CURRENT_INDEX, STEP_SECONDS, Scene
from pipeline.agents.agent import Agent
from pipeline.drawing.films import gif_bytes, scene_frames
from pipeline.drawing.raster import Panel, SceneRaster, panel_frame
from pipeline.execution.console import bar
from pipeline.execution.tables import csv_table

TABLE_FILE = "metrics.csv"
_CURVES = "tensorboard"
_PIXELS = 240
# Steps of 0.1 s between the pictures of the film.
_EVERY = 4
_END = CURRENT_INDEX + 80


class TrainingLog:
    """Curves and progress of one training.

    Args:
        out: folder of the outputs. name: of the stage. total: steps of the whole training.
        done: steps before an interruption. curves: write for TensorBoard. shown: draw a progress bar.
    """

    def __init__(self, out: Path, name: str, total: int, done: int, curves: bool, shown: bool) -> None:
        self._total = total
        self._progress: tqdm | None = bar(name, total, " steps", initial=min(done, total)) if shown else None
        # Steps after the last checkpoint are done again: their points are removed.
        self._writer = SummaryWriter(str(out / _CURVES), purge_step=done + 1) if curves else None

    def add(self, figures: Mapping[str, float], step: int, text: str) -> None:
        """Figures by tag after so many steps of the training, and what to write beside the bar."""
        if self._writer is not None:
            for tag, value in figures.items():
                self._writer.add_scalar(tag, value, step)
        if self._progress is not None:
            self._progress.set_postfix_str(text, refresh=False)
            self._progress.update(min(step, self._total) - self._progress.n)

    def film(self, agent: Agent, scene: Scene, step: int, seed: int) -> None:
        """A rollout of the model; see ``add_film``."""
        if self._writer is not None:
            add_film(self._writer, agent, scene, step, seed)

    def close(self) -> None:
        """Also after an error."""
        if self._progress is not None:
            self._progress.close()
        if self._writer is not None:
            self._writer.close()


def add_film(writer: SummaryWriter, agent: Agent, scene: Scene, step: int, seed: int) -> None:
    """Write one rollout beside the log as a short film, and its end as a picture.

    Args:
        writer: of the training. agent: the model. scene: a single scene. step: of the training.
        seed: of the rollout.
    """
    panels = [Panel("log"), Panel(f"step {step}", agent.rollouts(scene, 1, seed)[0])]
    raster = SceneRaster(scene, _PIXELS)
    end = np.asarray(panel_frame([raster] * len(panels), panels, _END))
    writer.add_image("rollout/end", end, step, dataformats="HWC")
    film = gif_bytes(scene_frames(scene, panels, _PIXELS, _EVERY), round(1 / (_EVERY * STEP_SECONDS)))
    # The library's own add_video needs a video library; TensorBoard itself plays a GIF given as an image.
    image = Summary.Image(height=end.shape[0], width=end.shape[1], colorspace=3, encoded_image_string=film)
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag="rollout/film", image=image)]), step)


def write_table(out: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the figures of a training as CSV; a figure that a row lacks is left empty."""
    cells = [["" if row.get(name) is None else row[name] for name in columns] for row in rows]
    write_text(out / TABLE_FILE, csv_table([columns, *cells]))

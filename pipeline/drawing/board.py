"""Pictures of a model in training, for TensorBoard: a scene as it is recorded, and as the model drives it."""

from __future__ import annotations

import numpy as np
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from data.scene import CURRENT_INDEX, STEP_SECONDS, Scene
from pipeline.agents.catalogue import SimAgent
from pipeline.drawing.films import gif_bytes, scene_frames
from pipeline.drawing.raster import Panel, SceneRaster, panel_frame

__all__ = ["add_rollout"]

_PIXELS = 240
# Steps of 0.1 s between the pictures of the video.
_EVERY = 4
_END = CURRENT_INDEX + 80


def add_rollout(writer: SummaryWriter, agent: SimAgent, scene: Scene, step: int, seed: int) -> None:
    """Write one rollout as a short video, and its end as a picture.

    Args:
        writer: of the training. step: of the training. agent: the model.
        scene: a single scene. seed: of the rollout.
    """
    panels = [Panel("log"), Panel(f"step {step}", agent.rollouts(scene, 1, seed)[0])]
    raster = SceneRaster(scene, _PIXELS)
    end = np.asarray(panel_frame([raster] * len(panels), panels, _END))
    writer.add_image("rollout/end", end, step, dataformats="HWC")
    film = gif_bytes(scene_frames(scene, panels, _PIXELS, _EVERY), round(1 / (_EVERY * STEP_SECONDS)))
    # The library's own add_video wants a video library; TensorBoard itself plays a GIF that stands for an image.
    image = Summary.Image(height=end.shape[0], width=end.shape[1], colorspace=3, encoded_image_string=film)
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag="rollout/film", image=image)]), step)

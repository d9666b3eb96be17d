"""A scene as pictures one after the other, as a video, an endless GIF, or a contact sheet."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from data.files import atomic_path, atomic_write
from data.scene import CURRENT_INDEX, NUM_STEPS, STEP_SECONDS, Scene
from pipeline.drawing.raster import Panel, SceneRaster, panel_frame

_RATE = round(1 / STEP_SECONDS)
# Seconds behind the current step that a contact sheet shows.
_SHEET_SECONDS = (0, 2, 4, 6, 8)


def scene_frames(scene: Scene, panels: Sequence[Panel], size: int, every: int = 1) -> Iterable[Image.Image]:
    """Pictures of a scene from its first recorded step to 8 s behind the current one, panels side by side.

    Args:
        scene: a single scene. panels: what is shown. size: pixels of each panel's side.
        every: steps of 0.1 s from one picture to the next.
    """
    raster = SceneRaster(scene, size)
    simulated = any(panel.states is not None for panel in panels)
    last = NUM_STEPS if simulated else scene.num_steps
    return (panel_frame([raster] * len(panels), panels, step) for step in range(0, last, every))


def gif_bytes(frames: Iterable[Image.Image], rate: int) -> bytes:
    """An endless GIF."""
    pictures = [frame.quantize(colors=64) for frame in frames]
    target = io.BytesIO()
    pictures[0].save(
        target, "GIF", save_all=True, append_images=pictures[1:], duration=1000 // rate, loop=0, disposal=1
    )
    return target.getvalue()


def write_contact_sheet(path: Path, scene: Scene, panels: Sequence[Panel], size: int = 320) -> None:
    """Write a PNG: a row a panel, a column every two seconds."""
    raster = SceneRaster(scene, size)
    write_sheet(path, [raster] * len(panels), panels, _SHEET_SECONDS)


def write_sheet(
    path: Path, rasters: Sequence[SceneRaster], panels: Sequence[Panel], seconds: Sequence[float]
) -> None:
    """Write a PNG: a row a panel, a column a moment.

    Args:
        path: of the file. rasters, panels: of the rows. seconds: of the columns, behind the current step.
    """
    rows = []
    for raster, panel in zip(rasters, panels, strict=True):
        cells = [
            np.asarray(panel_frame([raster], [panel], CURRENT_INDEX + round(moment / STEP_SECONDS)))
            for moment in seconds
        ]
        rows.append(np.concatenate(cells, axis=1))
    sheet = Image.fromarray(np.concatenate(rows, axis=0))
    atomic_write(path, lambda file: sheet.save(file, "PNG", optimize=True))


def write_video(path: Path, frames: Iterable[Image.Image]) -> int:
    """Write H.264 in MP4 at 10 Hz, which every player and slide program reads; returns the number of frames."""
    # Not needed by trainers, which import this module for TensorBoard's pictures.
    import av

    count = 0
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = None
        for frame in frames:
            # Sides must be even.
            width, height = frame.width // 2 * 2, frame.height // 2 * 2
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(_RATE))
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.options = {"crf": "20", "preset": "medium"}
            picture = av.VideoFrame.from_image(frame.crop((0, 0, width, height)))
            container.mux(stream.encode(picture))
            count += 1
        if stream is not None:
            container.mux(stream.encode())
    return count

"""Pictures to a video file."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

from data.files import atomic_path
from data.scene import STEP_SECONDS

__all__ = ["write_video"]

_RATE = round(1 / STEP_SECONDS)


def write_video(path: Path, frames: Iterable[Image.Image], rate: int = _RATE) -> int:
    """Write H.264 in MP4, which every player and slide program reads; returns the number of frames."""
    count = 0
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = None
        for frame in frames:
            # Sides must be even.
            width, height = frame.width // 2 * 2, frame.height // 2 * 2
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(rate))
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                stream.options = {"crf": "20", "preset": "medium"}
            picture = av.VideoFrame.from_image(frame.crop((0, 0, width, height)))
            container.mux(stream.encode(picture))
            count += 1
        if stream is not None:
            container.mux(stream.encode())
    return count

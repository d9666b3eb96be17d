"""Videos, sheets, figures and TensorBoard's pictures show the scene, and can be opened."""

from __future__ import annotations

import io
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX import SummaryWriter

from data.scene import AgentType, MapKind
from models.reference.agent import ReferenceAgent
from pipeline.agents.reference_agent import ReferenceDriver
from pipeline.drawing.films import gif_bytes, scene_frames, write_contact_sheet, write_video
from pipeline.drawing.palette import COLOURS
from pipeline.drawing.raster import Panel, SceneRaster
from pipeline.drawing.training_log import add_film
from pipeline.viewing.scene_pack import PAGE
from tests.models.scenes import random_scene
from tests.scenes import Mover, hand_made

SIZE = 200
EDGE = (MapKind.ROAD_EDGE, [(-30.0, -9.0), (30.0, -9.0)])


def colour_at(image: Image.Image, raster: SceneRaster, x: float, y: float) -> tuple[int, int, int]:
    scale = SIZE / (2 * raster.radius)
    column = SIZE / 2 + (x - raster.centre[0]) * scale
    row = SIZE / 2 - (y - raster.centre[1]) * scale
    pixel = image.getpixel((round(column), round(row)))
    assert isinstance(pixel, tuple)
    return pixel[0], pixel[1], pixel[2]


def test_agents_are_where_they_are() -> None:
    movers = [Mover(x=0.0, speed=2.0, size=(6.0, 3.0, 2.0)), Mover(x=0.0, y=12.0, size=(6.0, 3.0, 2.0))]
    movers.append(Mover(x=-10.0, y=5.0, kind=AgentType.PEDESTRIAN, size=(4.0, 4.0, 2.0)))
    scene = hand_made(movers, [EDGE])
    raster = SceneRaster(scene, SIZE, radius=30.0)
    paper = colour_at(raster.frame(10), raster, 20.0, -20.0)
    blue, orange, purple = (0, 114, 178), (213, 94, 0), (160, 51, 122)
    now = raster.frame(10)
    assert colour_at(now, raster, -0.5, 0.0) == purple
    assert colour_at(now, raster, -0.5, 12.0) == blue
    assert colour_at(now, raster, -10.0, 5.0) == orange
    # Ten seconds of the log are 1 s before to 8 s behind: 2 m/s for 8 s.
    later = raster.frame(90)
    assert colour_at(later, raster, 15.5, 0.0) == purple
    assert colour_at(later, raster, -4.0, 0.0) == paper
    # A rollout in which the second one has gone elsewhere takes over behind the current step.
    states = torch.zeros(3, 80, 4)
    states[1, :, 0] = 20.0
    assert colour_at(raster.frame(10, states), raster, -0.5, 12.0) == blue
    assert colour_at(raster.frame(11, states, log_behind=False), raster, 19.5, 0.0) == blue
    assert colour_at(raster.frame(11, states, log_behind=False), raster, -0.5, 12.0) == paper


def test_a_video_has_all_frames(tmp_path: Path) -> None:
    scene = hand_made([Mover(speed=3.0), Mover(x=20.0)], [EDGE])
    path = tmp_path / "film.mp4"
    panels = [Panel("log"), Panel("policy", torch.zeros(2, 80, 4))]
    assert write_video(path, scene_frames(scene, panels, 101)) == 91
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        frames = [frame.to_image() for frame in film.decode(stream)]
        assert stream.average_rate == 10
    assert len(frames) == 91
    assert frames[0].size == (202, 126)
    assert not np.array_equal(np.asarray(frames[0]), np.asarray(frames[90]))


def test_gifs_and_sheets_can_be_opened(tmp_path: Path) -> None:
    scene = hand_made([Mover(speed=3.0)], [EDGE])
    with Image.open(io.BytesIO(gif_bytes(scene_frames(scene, [Panel("log")], 60, every=30), 5))) as gif:
        assert gif.format == "GIF"
        assert getattr(gif, "n_frames", 0) == 4
    write_contact_sheet(tmp_path / "sheet.png", scene, [Panel("log"), Panel("a", torch.zeros(1, 80, 4))], 50)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (250, 2 * 76)


def test_scenes_without_a_future_can_be_drawn() -> None:
    scene = random_scene(0, steps=11)
    states = torch.zeros(int(scene.simulated.sum()), 80, 4)
    assert len(list(scene_frames(scene, [Panel("a", states)], 40, every=10))) == 10
    assert len(list(scene_frames(scene, [Panel("log")], 40))) == 11


def test_tensorboard_shows_a_film(tmp_path: Path, reference: ReferenceAgent) -> None:
    writer = SummaryWriter(str(tmp_path))
    add_film(writer, ReferenceDriver(reference), random_scene(0), 7, 0)
    writer.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    assert sorted(events.Tags()["images"]) == ["rollout/end", "rollout/film"]
    (film,) = events.Images("rollout/film")
    assert film.step == 7
    with Image.open(io.BytesIO(film.encoded_image_string)) as gif:
        assert getattr(gif, "n_frames", 0) == 23


def test_a_full_disk_leaves_no_half_video(tmp_path: Path) -> None:
    scene = hand_made([Mover()], [EDGE])

    def frames():
        yield from list(scene_frames(scene, [Panel("log")], 60, every=30))[:2]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_video(tmp_path / "film.mp4", frames())
    assert list(tmp_path.iterdir()) == []


def test_the_palette_is_the_pages() -> None:
    """Films and figures have the colours of the browser in daylight."""
    daylight = (PAGE / "page.css").read_text().split("}")[0]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", daylight))
    assert {name: colours[name] for name in COLOURS} == COLOURS

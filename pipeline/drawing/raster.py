"""Scenes as pixels, for videos, contact sheets and TensorBoard: what ``page/canvas.js`` draws, in Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data.geometry import box_corners
from data.scene import CURRENT_INDEX, STEP_SECONDS, AgentType, LightState, Scene
from pipeline.drawing.drawn_map import DrawnMap, Line, drawn_map
from pipeline.drawing.palette import COLOURS, LINES, TYPES

# Drawn larger and made smaller again: Pillow's lines have no soft edges.
_FINER = 2
# Widths in pixels of what is no hairline.
_WIDTHS = {Line.STOP_SIGN: 3, Line.EDGE: 2}
_RED = frozenset({LightState.ARROW_STOP, LightState.STOP, LightState.FLASHING_STOP})
_GREEN = frozenset({LightState.ARROW_GO, LightState.GO})
_TITLE = 26


@dataclass(frozen=True)
class Panel:
    """One picture of several side by side: a title, and states [S, 80, 4] of the simulated agents, or the log."""

    title: str
    states: Tensor | None = None


class SceneRaster:
    """Draws one scene at one place and scale.

    Args:
        scene: a single scene. size: pixels of the square picture.
        radius: metres from the middle to the side; by default all agents that move are inside, within reason.
        centre: [2] metres, the middle of the picture; by default where the agents are.
    """

    def __init__(
        self,
        scene: Scene,
        size: int,
        radius: float | None = None,
        centre: NDArray[np.float64] | None = None,
    ) -> None:
        self.scene, self.size = scene, size
        now = scene.agents.position[scene.simulated, CURRENT_INDEX, :2].double()
        self.centre = ((now.amin(0) + now.amax(0)) / 2).numpy()
        spread = float((now.amax(0) - now.amin(0)).max()) / 2 + 12.0
        self.radius = radius or min(90.0, max(25.0, spread))
        if radius is None and spread > self.radius:
            # Too far apart for one picture: the AV stays in its middle.
            sdc = scene.agents.position[scene.agents.is_sdc & scene.simulated, CURRENT_INDEX, :2].double()
            self.centre = sdc[0].numpy() if len(sdc) else self.centre
        if centre is not None:
            self.centre = centre
        self._scale = size * _FINER / (2 * self.radius)

    def _pixels(self, points: NDArray[np.float64]) -> list[tuple[float, float]]:
        """Pixels of points [n, 2] in metres."""
        moved = (points - self.centre) * self._scale * (1, -1) + self.size * _FINER / 2
        return [(float(x), float(y)) for x, y in moved]

    @cached_property
    def _map(self) -> DrawnMap:
        return drawn_map(self.scene)

    @cached_property
    def _ground(self) -> Image.Image:
        """The map, which does not change."""
        image = Image.new("RGB", (self.size * _FINER,) * 2, COLOURS["canvas"])
        draw = ImageDraw.Draw(image)
        for kind, colour in LINES.items():
            for line in self._map.lines(kind):
                if len(line) > 1:
                    draw.line(self._pixels(line), fill=colour, width=_WIDTHS.get(kind, 1) * _FINER, joint="curve")
                else:
                    self._dot(draw, line[0], 4, colour)
        return image

    def _dot(self, draw: ImageDraw.ImageDraw, point: NDArray[np.float64], radius: float, colour: str) -> None:
        ((x, y),) = self._pixels(point[None])
        reach = radius * _FINER
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)

    def _lights(self, draw: ImageDraw.ImageDraw, step: int) -> None:
        lights = self.scene.lights
        at = min(step, self.scene.num_steps - 1)
        for lane in range(len(lights.lane_id)):
            if not bool(lights.observed[lane, at]):
                continue
            state = LightState(int(lights.state[lane, at]))
            colour = COLOURS["stop" if state in _RED else "go" if state in _GREEN else "caution"]
            self._dot(draw, lights.stop_point[lane, at, :2].double().numpy(), 3.5, colour)

    def _boxes(self, rows: Tensor, position: Tensor, heading: Tensor) -> list[list[tuple[float, float]]]:
        size = self.scene.agents.size[rows]
        seen = self.scene.agents.valid[rows]
        # Of agents that are not there now, the first size that is known.
        at = torch.where(seen[:, CURRENT_INDEX], CURRENT_INDEX, seen.int().argmax(-1))
        size = size[torch.arange(len(rows)), at]
        least = 5.0 * _FINER / self._scale
        length, width = size[:, 0].clamp(min=least), size[:, 1].clamp(min=0.7 * least)
        corners = box_corners(position, heading, length, width).double().numpy()
        return [self._pixels(box) for box in corners]

    def _logged(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, positions and headings of agents that are recorded at a step."""
        agents = self.scene.agents
        if step >= self.scene.num_steps:
            none = torch.zeros(0)
            return none.long(), none.view(0, 2), none
        rows = agents.valid[:, step].nonzero().flatten()
        return rows, agents.position[rows, step, :2], agents.heading[rows, step]

    def frame(self, step: int, states: Tensor | None = None, log_behind: bool = True) -> Image.Image:
        """The scene at a step (0.1 s; the current one is 10).

        Args:
            step: 0 to 90. states: [S, 80, 4] of the simulated agents, which take over behind the current step.
            log_behind: outline what the log does beside them.
        """
        image = self._ground.copy()
        draw = ImageDraw.Draw(image)
        self._lights(draw, step)
        simulated = states is not None and step > CURRENT_INDEX
        if simulated and log_behind:
            for box in self._boxes(*self._logged(step)):
                draw.polygon(box, outline=COLOURS["ghost"], width=_FINER)
        if states is not None and simulated:
            rows = self.scene.simulated.nonzero().flatten()
            at = states[:, step - CURRENT_INDEX - 1]
            boxes = self._boxes(rows, at[:, :2], at[:, 3])
        else:
            rows, position, heading = self._logged(step)
            boxes = self._boxes(rows, position, heading)
        agents = self.scene.agents
        for row, box in zip(rows.tolist(), boxes, strict=True):
            kind = TYPES.get(AgentType(int(agents.type[row])), COLOURS["other"])
            draw.polygon(box, fill=COLOURS["sdc"] if bool(agents.is_sdc[row]) else kind)
            front = [tuple(0.8 * a + 0.2 * b for a, b in zip(box[i], box[j], strict=True)) for i, j in self._front]
            draw.line(front, fill=COLOURS["canvas"], width=_FINER)
        return image.resize((self.size, self.size), Image.Resampling.LANCZOS)

    # Corners of the front and of the back, in the order of ``box_corners``; see the test.
    _front = ((0, 1), (3, 2))


def panel_frame(rasters: Sequence[SceneRaster], panels: Sequence[Panel], step: int) -> Image.Image:
    """Pictures side by side with titles and the time."""
    size = rasters[0].size
    image = Image.new("RGB", (size * len(panels), size + _TITLE), COLOURS["paper"])
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=14)
    seconds = (step - CURRENT_INDEX) * STEP_SECONDS
    for number, (raster, panel) in enumerate(zip(rasters, panels, strict=True)):
        image.paste(raster.frame(step, panel.states), (number * size, _TITLE))
        draw.text((number * size + 8, 5), f"{panel.title}  {seconds:+.1f} s", fill=COLOURS["ink"], font=font)
    return image

"""Draw a scene from above: what was recorded, and some simulated futures beside it.

    python scripts/studies/draw_rollouts.py --run runs/demo --agents reference policy \\
        --out docs/pictures/rollout.png

Use scenes of generated traffic for pictures that are published: WOMD's licence does not allow copies of its data.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.files import atomic_path
from data.geometry import box_corners
from data.scene import CURRENT_INDEX, AgentType, MapKind, Scene
from data.store import SceneStore
from submission.protos import Rollouts, read_rollouts

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection, PolyCollection

_MAP_STYLE: dict[MapKind, tuple[str, float]] = {
    MapKind.LANE: ("#d5dbe1", 0.8),
    MapKind.ROAD_LINE: ("#b6a26a", 0.6),
    MapKind.ROAD_EDGE: ("#56616d", 1.1),
    MapKind.CROSSWALK: ("#9aa7b5", 0.8),
}
_COLOURS = {AgentType.VEHICLE: "#2563a8", AgentType.PEDESTRIAN: "#c2410c", AgentType.CYCLIST: "#15803d"}
_SHOWN_ROLLOUTS = 8


def _draw_map(axes: Any, scene: Scene) -> None:
    road = scene.map
    for kind, (colour, width) in _MAP_STYLE.items():
        lines = []
        for index in (road.kind == kind).nonzero().flatten().tolist():
            points = road.point[road.point_feature == index, :2].numpy()
            lines.append(np.concatenate((points, points[:1])) if kind == MapKind.CROSSWALK else points)
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=width, zorder=1))


def _draw_agents(axes: Any, scene: Scene, futures: torch.Tensor, valid: torch.Tensor) -> None:
    """Boxes at the current step, and where agents go: futures [R, A, T, 2+], valid [A, T]."""
    agents = scene.agents
    rows = scene.simulated.nonzero().flatten()
    now = agents.position[rows, CURRENT_INDEX, :2]
    size = agents.size[rows, CURRENT_INDEX]
    corners = box_corners(now, agents.heading[rows, CURRENT_INDEX], size[:, 0], size[:, 1]).numpy()
    colours = [_COLOURS.get(AgentType(int(kind)), "#444444") for kind in agents.type[rows]]
    alpha = max(0.25, 1.0 / len(futures) ** 0.5)
    for future in futures:
        lines = [
            np.concatenate((now[row : row + 1].numpy(), path[seen, :2].numpy()))
            for row, (path, seen) in enumerate(zip(future, valid))
        ]
        axes.add_collection(LineCollection(lines, colors=colours, linewidths=1.4, alpha=alpha, zorder=3))
    axes.add_collection(
        PolyCollection(list(corners), facecolors=colours, edgecolors="white", linewidths=0.4, zorder=4)
    )


def _panel(axes: Any, scene: Scene, title: str, futures: torch.Tensor, valid: torch.Tensor, radius: float) -> None:
    _draw_map(axes, scene)
    _draw_agents(axes, scene, futures, valid)
    center = scene.agents.position[scene.agents.is_sdc][0, CURRENT_INDEX, :2].tolist()
    axes.set(xlim=(center[0] - radius, center[0] + radius), ylim=(center[1] - radius, center[1] + radius))
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=11)


def _rollouts(folder: Path, scenario_id: str) -> Rollouts:
    return next(found for found in read_rollouts(folder) if found.scenario_id == scenario_id)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--agents", nargs="+", default=["reference", "policy"], help="agents beside the log")
    parser.add_argument("--scene", type=int, default=0, help="number of the validation scene")
    parser.add_argument("--radius", type=float, default=70.0, help="half the width shown, metres")
    parser.add_argument("--out", type=Path, required=True, help="PNG file")
    options = parser.parse_args(arguments)
    scene = SceneStore(options.run / "tokenize" / "validation")[options.scene]
    figure, panels = plt.subplots(1, 1 + len(options.agents), figsize=(4.6 * (1 + len(options.agents)), 4.9))
    rows = scene.simulated
    log = scene.agents.position[rows, CURRENT_INDEX + 1 :, :2].unsqueeze(0)
    _panel(panels[0], scene, "recorded, 8 s", log, scene.agents.valid[rows, CURRENT_INDEX + 1 :], options.radius)
    for axes, agent in zip(panels[1:], options.agents):
        found = _rollouts(options.run / "sample" / "validation" / agent, str(scene.scenario_id))
        futures = found.states[:_SHOWN_ROLLOUTS]
        everything = torch.ones(futures.shape[1:3], dtype=torch.bool)
        _panel(axes, scene, f"{agent}, {len(futures)} rollouts", futures, everything, options.radius)
    figure.tight_layout()
    with atomic_path(options.out) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())

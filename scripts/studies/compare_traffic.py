"""Compare generated traffic with recorded scenes: distributions as a figure, means and quantiles as a table.

Example:
    python scripts/studies/compare_traffic.py --generated runs/traffic/validation --real WOMD/validation \\
        --out traffic.png
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.errors import UserError
from data.files import atomic_path
from data.geometry import box_corners, wrap_angle
from data.scene import CURRENT_INDEX, STEP_SECONDS, AgentType, Scene
from data.tfrecord import BrokenRecord, read_records
from data.womd import parse_scenario

Samples = dict[str, NDArray[np.float64]]

# Slower than this (m/s) is standing; accelerations and yaw rates are compared for what moves.
STANDING = 0.5
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_TYPES = {"vehicle": AgentType.VEHICLE, "pedestrian": AgentType.PEDESTRIAN, "cyclist": AgentType.CYCLIST}


@dataclass(frozen=True)
class Panel:
    """One histogram: the quantity, its unit, its range and whether its counts are drawn on a log scale."""

    name: str
    unit: str
    low: float
    high: float
    log: bool = False


PANELS = (
    Panel("simulated agents per scene", "", 0, 100),
    Panel("speed of moving vehicles", "m/s", 0, 25),
    Panel("speed of moving pedestrians", "m/s", 0, 4),
    Panel("acceleration", "m/s²", -6, 6, log=True),
    Panel("yaw rate", "rad/s", -1.2, 1.2, log=True),
    Panel("distance to nearest agent", "m", 0, 30),
    Panel("share of vehicles standing", "", 0, 1),
    Panel("share of steps seen", "", 0, 1),
    Panel("distance travelled by tracks to predict", "m", 0, 150),
)


def read_scenes(folder: Path) -> Iterator[Scene]:
    """Scenes of all TFRecord shards below a folder, in the order of their names."""
    files = sorted(path for path in folder.rglob("*tfrecord*") if path.is_file())
    if not files:
        raise UserError(f"{folder}: no file with tfrecord in its name")
    for path in files:
        for record in read_records(path):
            if isinstance(record, BrokenRecord):
                raise UserError(f"{path}: record {record.index}: {record.reason}")
            yield parse_scenario(record)


def _nearest(scene: Scene) -> NDArray[np.float64]:
    """Distance from the box of each agent to the nearest other box at the current step, metres."""
    agents, now = scene.agents, scene.simulated
    corners = box_corners(
        agents.position[now, CURRENT_INDEX, :2].double(),
        agents.heading[now, CURRENT_INDEX].double(),
        agents.size[now, CURRENT_INDEX, 0].double(),
        agents.size[now, CURRENT_INDEX, 1].double(),
    )
    boxes = shapely.polygons(corners.numpy())
    if len(boxes) < 2:
        return np.empty(0)
    distance = shapely.distance(boxes[:, None], boxes[None, :])
    np.fill_diagonal(distance, np.inf)
    nearest: NDArray[np.float64] = distance.min(axis=1)
    return nearest


def measure(scene: Scene) -> dict[str, Tensor]:
    """Samples [N] of every quantity of ``PANELS`` from one scene.

    Motion is differenced from positions and headings, as the metric does, not read from the velocity field.
    """
    agents = scene.agents
    both = agents.valid[:, 2:] & agents.valid[:, :-2]
    velocity = (agents.position[:, 2:, :2] - agents.position[:, :-2, :2]).double() / (2 * STEP_SECONDS)
    speed = velocity.norm(dim=-1)
    steady = both[:, 2:] & both[:, :-2]
    acceleration = (speed[:, 2:] - speed[:, :-2]) / (2 * STEP_SECONDS)
    yaw_rate = wrap_angle((agents.heading[:, 2:] - agents.heading[:, :-2]).double()) / (2 * STEP_SECONDS)
    moving = both & (speed > STANDING)
    kind = agents.type[:, None]
    vehicle_now = scene.simulated & (agents.type == AgentType.VEHICLE) & both[:, CURRENT_INDEX - 1]
    speed_now = speed[vehicle_now, CURRENT_INDEX - 1]
    step = torch.where(
        agents.valid[:, 1:] & agents.valid[:, :-1],
        (agents.position[:, 1:, :2] - agents.position[:, :-1, :2]).norm(dim=-1),
        torch.zeros(()),
    )
    return {
        "simulated agents per scene": scene.simulated.sum()[None],
        "speed of moving vehicles": speed[moving & (kind == AgentType.VEHICLE)],
        "speed of moving pedestrians": speed[moving & (kind == AgentType.PEDESTRIAN)],
        "acceleration": acceleration[steady & moving[:, 1:-1]],
        "yaw rate": yaw_rate[moving],
        "distance to nearest agent": torch.from_numpy(_nearest(scene)),
        "share of vehicles standing": (speed_now < STANDING).double().mean()[None]
        if len(speed_now)
        else torch.empty(0),
        "share of steps seen": agents.valid.double().mean(dim=1),
        "distance travelled by tracks to predict": step.sum(dim=1)[agents.to_predict],
        **{
            f"tracks to predict: {name}": (agents.type[agents.to_predict] == value).double()
            for name, value in _TYPES.items()
        },
        **{
            f"simulated agents: {name}": (agents.type[scene.simulated] == value).double()
            for name, value in _TYPES.items()
        },
    }


def collect(folder: Path) -> Samples:
    """Samples of all scenes of a folder with a future."""
    parts = [measure(scene) for scene in read_scenes(folder) if scene.has_future]
    if not parts:
        raise UserError(f"{folder}: no scene with a future; compare training or validation scenes")
    return {name: torch.cat([part[name].double() for part in parts]).numpy() for name in parts[0]}


def print_table(generated: Samples, real: Samples) -> None:
    """Means and quantiles of both, one line each."""
    head = "".join(f"{f'{level:.0%}':>9}" for level in _QUANTILES)
    print(f"{'quantity':<44}{'':>10}{'samples':>9}{'mean':>9}{head}")
    for name in generated:
        for label, samples in (("generated", generated[name]), ("real", real[name])):
            values = [samples.mean(), *np.quantile(samples, _QUANTILES)] if len(samples) else [math.nan] * 6
            print(f"{name:<44}{label:>10}{len(samples):>9}" + "".join(f"{value:>9.3f}" for value in values))


def draw(generated: Samples, real: Samples, out: Path) -> None:
    """Write the histograms as PNG."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 3, figsize=(15, 11), constrained_layout=True)
    for panel, axis in zip(PANELS, axes.flat, strict=True):
        bins = np.linspace(panel.low, panel.high, 41)
        for label, samples, colour in (("generated", generated, "tab:blue"), ("real", real, "tab:orange")):
            values = np.clip(samples[panel.name], panel.low, panel.high)
            weights = np.full(len(values), 1 / max(1, len(values)))
            axis.hist(values, bins, weights=weights, histtype="step", color=colour, label=label, linewidth=1.6)
        axis.set_title(panel.name)
        axis.set_xlabel(panel.unit)
        if panel.log:
            axis.set_yscale("log")
    axes.flat[0].legend()
    axes[1, 0].set_ylabel("share of samples")
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare generated traffic with recorded scenes.")
    parser.add_argument("--generated", type=Path, required=True, help="folder of generated TFRecord shards")
    parser.add_argument("--real", type=Path, required=True, help="folder of WOMD TFRecord shards")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        generated, real = collect(options.generated), collect(options.real)
        print_table(generated, real)
        draw(generated, real, options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A policy or a reference drives everybody in a recorded scene but the AV, which brakes by a script.

    python scripts/examples/embed.py runs/demo/selfplay/policy.ckpt runs/demo/tokenize/validation

In each world the AV brakes as hard as ``--brake`` says; all worlds are driven at once. Each second, it prints the
speed of the AV, the mean speed of the others, and the distance of the AV from the nearest of them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from data.scene import STEP_SECONDS
from data.scenes_source import open_scenes
from pipeline.agents.catalogue import open_agent
from pipeline.agents.live import LiveTraffic, Moment
from pipeline.execution.tables import render_table


def braking(state: NDArray[np.float64], rate: float, steps: int) -> NDArray[np.float64]:
    """Poses [steps, 3] straight on from a state [9], slowing by ``rate`` m/s^2 to a stand."""
    speed = np.maximum(np.hypot(*state[7:9]) - rate * STEP_SECONDS * np.arange(1, steps + 1), 0.0)
    way = np.cumsum(speed)[:, None] * STEP_SECONDS * [np.cos(state[6]), np.sin(state[6])]
    return np.concatenate((state[:2] + way, np.full((steps, 1), state[6])), axis=-1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="policy.ckpt or reference.ckpt")
    parser.add_argument("scenarios", help="a store, or files of any format that tokenize reads")
    parser.add_argument("--brake", type=float, nargs="+", default=[0.0, 2.0, 6.0], help="m/s^2, a world each")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    scene = open_scenes(options.scenarios)[0]
    av = scene.agents.is_sdc[scene.simulated].numpy()
    if not av.any():
        raise UserError(
            f"scenario {scene.scenario_id}: the AV is not there at the current step; give another scene"
        )
    traffic = LiveTraffic(open_agent(options.checkpoint), scene.map, options.seed)
    moments = [Moment.of_scene(scene, ~av)] * len(options.brake)
    rows = [["s", "brake, m/s^2", "AV, m/s", "others, m/s", "nearest, m"]]
    for decision in range(round(options.seconds / STEP_SECONDS) // traffic.steps):
        poses = traffic.step(moments)
        for pose, moment, rate in zip(poses, moments, options.brake, strict=True):
            pose[av] = braking(moment.states[av][0, -1], rate, traffic.steps)
        moments = [moment.after(pose) for moment, pose in zip(moments, poses, strict=True)]
        time = round((decision + 1) * traffic.steps * STEP_SECONDS, 1)
        if time.is_integer():
            rows += [_row(time, rate, moment, av) for rate, moment in zip(options.brake, moments, strict=True)]
    print(render_table(rows))
    return 0


def _row(time: float, rate: float, moment: Moment, av: NDArray[np.bool_]) -> list[str]:
    now = moment.states[:, -1]
    speed, away = np.hypot(now[:, 7], now[:, 8]), np.hypot(*(now[:, :2] - now[av][0, :2]).T)
    others = (speed[~av].mean(), away[~av].min()) if (~av).any() else (np.nan, np.nan)
    return [f"{time:.0f}", f"{rate:g}", f"{speed[av][0]:.1f}", *(f"{value:.1f}" for value in others)]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")

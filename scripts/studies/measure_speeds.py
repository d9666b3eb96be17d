"""How fast vehicles go on that move at the current step: in the log, and in rollouts.

    python scripts/studies/measure_speeds.py --scenarios runs/demo/tokenize/validation \\
        --rollouts runs/demo/sample/validation/policy [--rollouts ...]

Prints the mean speed now and after every two seconds. Only vehicles count that are recorded at all of these
moments, so that all rows are of the same ones.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.scene import CURRENT_INDEX, STEP_SECONDS
from data.scenes_source import open_scenes
from data.vocabulary import type_index
from submission.protos import read_rollouts

_MOVING = 0.5
_SECONDS = (2, 4, 6, 8)


def _speeds(position: Tensor) -> Tensor:
    """[..., 4] m/s at the end of every two seconds, of positions [..., 80, 2]."""
    at = torch.tensor([round(seconds / STEP_SECONDS) - 1 for seconds in _SECONDS])
    return (position[..., at, :] - position[..., at - 1, :]).norm(dim=-1) / STEP_SECONDS


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenarios", required=True, help="with futures")
    parser.add_argument("--rollouts", action="append", required=True, help="of these scenarios; may be repeated")
    options = parser.parse_args(arguments)
    source = open_scenes(options.scenarios)
    now: list[Tensor] = []
    rows: dict[str, list[Tensor]] = {"log": []}
    chosen: dict[str, Tensor] = {}
    for scene in source:
        agents, simulated = scene.agents, scene.simulated
        speed = agents.velocity[simulated, CURRENT_INDEX].norm(dim=-1)
        moments = [CURRENT_INDEX + round(seconds / STEP_SECONDS) for seconds in _SECONDS]
        seen = torch.stack([agents.valid[simulated][:, [m - 1, m]].all(-1) for m in moments]).all(0)
        mine = seen & (speed > _MOVING) & (type_index(agents.type[simulated]) == 0)
        chosen[str(scene.scenario_id)] = mine
        now.append(speed[mine])
        rows["log"].append(_speeds(agents.position[simulated][mine, CURRENT_INDEX + 1 :, :2]))
    for path in options.rollouts:
        rows[path] = [_speeds(one.states[:, chosen[one.scenario_id], :, :2]).mean(0) for one in read_rollouts(path)]
    start = torch.cat(now).mean()
    print(f"{len(torch.cat(now))} vehicles, m/s: now {start:.2f}; after {', '.join(map(str, _SECONDS))} s")
    for name, parts in rows.items():
        print(f"  {name}: {', '.join(f'{value:.2f}' for value in torch.cat(parts).mean(0).tolist())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

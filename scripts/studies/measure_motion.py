"""How far recorded agents move in a tenth of a second: what a validator may call a jump.

    python scripts/studies/measure_motion.py --scenarios womd/training

Prints, for each type of agent, quantiles of the distance in the plane and of the change of height between two steps
that are both recorded, and what of each lies beyond the validator's limits.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.scene import CURRENT_INDEX
from data.scenes_source import open_scenes
from data.vocabulary import TYPE_NAMES, type_index
from submission.plausibility import JUMP, RISE

_QUANTILES = (0.5, 0.99, 0.999, 0.9999, 1.0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenarios", required=True)
    options = parser.parse_args(arguments)
    steps: dict[int, list[torch.Tensor]] = {index: [] for index in range(len(TYPE_NAMES))}
    rises: dict[int, list[torch.Tensor]] = {index: [] for index in range(len(TYPE_NAMES))}
    for scene in open_scenes(options.scenarios):
        chosen = scene.simulated
        position, valid = scene.agents.position[chosen, CURRENT_INDEX:], scene.agents.valid[chosen, CURRENT_INDEX:]
        both = valid[:, 1:] & valid[:, :-1]
        step = position[:, 1:] - position[:, :-1]
        types = type_index(scene.agents.type[chosen])
        for index in steps:
            mine = both & (types == index)[:, None]
            steps[index].append(step[mine][:, :2].norm(dim=-1))
            rises[index].append(step[mine][:, 2].abs())
    for title, values, limit in (("distance", steps, JUMP), ("height", rises, RISE)):
        print(f"{title}, metres a step; limit {limit}")
        for index, name in enumerate(TYPE_NAMES):
            data = torch.cat(values[index]).double().sort().values
            row = [f"{float(data[round(share * (len(data) - 1))]):9.3f}" for share in _QUANTILES]
            print(f"  {name:11} {len(data):9} steps {' '.join(row)}   beyond: {int((data > limit).sum())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

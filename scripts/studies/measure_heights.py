"""What heights that follow the map are worth: errors on recorded motion, and minADE of sampled futures.

    python scripts/studies/measure_heights.py --scenarios WOMD/validation [--checkpoint CKPT] [--rollouts 8]

Prints the mean error of z over valid future steps with z kept at its present value and with z that follows the map
under the recorded positions; with a checkpoint also minADE (the metric's, in three dimensions) of both.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.ground import follow_ground
from data.scene import CURRENT_INDEX
from data.scenes_source import open_scenes
from models.reference.agent import ReferenceAgent
from submission.realism import load_config, prepare_scene, score, unscorable_reason


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenarios", required=True, help="WOMD TFRecords or an ingested store, with futures")
    parser.add_argument("--checkpoint", type=Path, help="reference.ckpt")
    parser.add_argument("--rollouts", type=int, default=8, help="futures of each scenario")
    options = parser.parse_args(arguments)
    agent = None if options.checkpoint is None else ReferenceAgent.from_checkpoint(options.checkpoint)
    config, source = load_config("2025"), open_scenes(options.scenarios)
    kept = followed = 0.0
    steps = 0
    ade: list[tuple[float, float]] = []
    for index in range(len(source)):
        scene = source[index]
        agents, future = scene.agents, slice(CURRENT_INDEX + 1, None)
        position, valid = agents.position[scene.simulated, future], agents.valid[scene.simulated, future]
        start = agents.position[scene.simulated, CURRENT_INDEX]
        height = follow_ground(scene, position[None, ..., :2], start)[0]
        # Where the recording has a gap there is no place to look at.
        whole = valid.all(-1, keepdim=True)
        kept += float(((position[..., 2] - start[:, None, 2]).abs() * whole).sum())
        followed += float(((position[..., 2] - height).abs() * whole).sum())
        steps += int(whole.sum()) * valid.shape[1]
        if agent is None or unscorable_reason(scene) is not None:
            continue
        states, ids = agent.rollouts(scene, options.rollouts, 0), agents.id[scene.simulated]
        prepared = prepare_scene(scene)
        flat = states.clone()
        flat[..., 2] = start[:, None, 2]
        field = "min_average_displacement_error"
        ade.append(tuple(float(score(prepared, ids, s, config).values[field]) for s in (flat, states)))  # type: ignore[arg-type]
    print(f"z, mean error over {steps} steps: kept {kept / steps:.4f} m, followed {followed / steps:.4f} m")
    if ade:
        flat_mean, followed_mean = (sum(values) / len(ade) for values in zip(*ade, strict=True))
        print(f"minADE over {len(ade)} scenarios: kept {flat_mean:.4f} m, followed {followed_mean:.4f} m")
    return 0


if __name__ == "__main__":
    sys.exit(main())

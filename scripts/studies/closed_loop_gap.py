"""What closed-loop fine-tuning has to learn from: how far rollouts of the reference near the log get from it.

    python scripts/studies/closed_loop_gap.py --scenes runs/store/training --checkpoint runs/pretrain/reference.ckpt

A rollout takes, of the k likeliest tokens, the one nearest to the log (CAT-K). Prints for some k how often that is
another token than the nearest of all, which teacher forcing would give, and how far rollouts are from the log.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from data.batch import collate
from data.scene import CURRENT_INDEX
from data.store import SceneStore
from data.vocabulary import corner_distance, pose_corners
from models.reference.checkpoint import load_reference
from models.reference.inputs import keep_agents
from models.reference.recording import scene_inputs
from pipeline.evaluation.tables import render_table
from pipeline.stages.finetune import roll_out


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", type=Path, required=True, help="store")
    parser.add_argument("--checkpoint", type=Path, required=True, help="reference.ckpt")
    parser.add_argument("--count", type=int, default=24, help="scenes, spread over the store")
    parser.add_argument("--top_k", type=int, nargs="+", default=[1, 5, 32, 200])
    options = parser.parse_args(arguments)
    model = load_reference(options.checkpoint).eval()
    store = SceneStore(options.scenes)
    rows = [["k", "another token, %", "mean distance, m", "p90, m", "p99, m", "beyond 1 m, %"]]
    for top_k in options.top_k:
        differ, errors = [], []
        for index in range(0, len(store), max(1, len(store) // options.count)):
            inputs = scene_inputs(collate([keep_agents(store[index], 32)]), model.vocabulary)
            loop = roll_out(model, inputs, top_k, float("inf"))
            first = CURRENT_INDEX // model.vocabulary.token_steps
            box = model.vocabulary.box[inputs.agents.types.unsqueeze(-1)]
            start = loop.tokens.poses[:, :, :-1]
            error = corner_distance(pose_corners(start, box), pose_corners(inputs.recorded[:, :, :-1], box))
            differ.append((loop.tokens.ids != loop.target)[loop.mask])
            errors.append(error[..., first + 1 :][loop.mask[..., first + 1 :]])
        distance = torch.cat(errors)
        fraction = torch.cat(differ).double().mean()
        tail = [float(torch.quantile(distance[:: max(1, len(distance) // 1_000_000)], q)) for q in (0.9, 0.99)]
        cells = [f"{100 * fraction:.1f}", f"{distance.mean():.3f}", *(f"{value:.2f}" for value in tail)]
        rows.append([str(top_k), *cells, f"{100 * (distance > 1).double().mean():.1f}"])
    print(render_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Curves of self-play: KL to the reference, entropy, the reference's log-likelihood and rates of events.

    python scripts/studies/draw_selfplay.py --curve "beta 0.1=runs/a/metrics.csv" --curve "ppo=runs/b/metrics.csv" \
        --out curves.png

KL and likelihood are shown of anchored runs alone; others do not measure them on the way (the table of
``selfplay_study.py`` has them for all). Dashed lines are where the paper's runs of 1e9 steps end (SPACeR, Figure
A1, alpha 0, read off the plot).
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_PANELS = (
    ("kl", "KL(policy || reference), nats"),
    ("entropy", "entropy of the policy, nats"),
    ("log_likelihood", "log-likelihood of what was done, nats"),
    ("collision_rate", "agents that collide in 8 s"),
    ("off_road_rate", "vehicles that leave the road in 8 s"),
    ("goal_rate", "moving agents that reach their goal"),
)
_ANCHORED = ("kl", "log_likelihood")
# beta to KL, entropy; the paper's log-likelihoods have another scale.
_PAPER = {"0": (2.05, 1.0), "0.01": (0.78, 1.8), "0.1 and 1": (0.59, 2.5)}


def _series(path: Path, column: str, window: float) -> tuple[list[float], list[float]]:
    """Means over windows of agent-steps."""
    with path.open() as file:
        rows = [(float(row["agent_steps"]), float(row[column])) for row in csv.DictReader(file) if row[column]]
    steps: list[float] = []
    values: list[float] = []
    group: list[float] = []
    for step, value in rows:
        group.append(value)
        if step >= window * (len(steps) + 1):
            steps.append(step)
            values.append(sum(group) / len(group))
            group = []
    return steps, values


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--curve", action="append", required=True, help="NAME=metrics.csv; several times")
    parser.add_argument("--window", type=float, default=20_000, help="agent-steps that a point averages over")
    parser.add_argument("--out", type=Path, required=True, help="PNG file")
    options = parser.parse_args(arguments)
    figure, axes = plt.subplots(2, 3, figsize=(13, 7))
    for axis, (column, title) in zip(axes.flat, _PANELS, strict=True):
        for curve in options.curve:
            name, _, path = curve.rpartition("=")
            steps, values = _series(Path(path), column, options.window)
            # Without an anchor nothing is compared with the reference, and zeros are written.
            known = column not in _ANCHORED or any(values)
            axis.plot(steps, values if known else [math.nan] * len(values), label=name, linewidth=1.5)
        if column in ("kl", "entropy"):
            for beta, ends in _PAPER.items():
                axis.axhline(ends[column == "entropy"], color="grey", linestyle="--", linewidth=0.8)
                axis.annotate(
                    f"paper, beta {beta}",
                    (1.0, ends[column == "entropy"]),
                    xycoords=("axes fraction", "data"),
                    fontsize=7,
                    ha="right",
                    va="bottom",
                    color="grey",
                )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("agent-steps", fontsize=8)
        axis.grid(alpha=0.3)
    axes.flat[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(options.out, dpi=75)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Learning curves of several trainings, drawn together: what ``metrics.csv`` of reference or policy holds.

    python scripts/studies/draw_curves.py --curve "real=runs/a/metrics.csv" --curve "generated=runs/b/metrics.csv" \
        --out curves.png

KL and likelihood of policies are shown of anchored trainings alone; others do not measure them while they train.
Dashed lines are where the paper's trainings of 1e9 steps end (SPACeR, Figure A1, alpha 0, read off the plot).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Column, title, and over how many steps a point is a mean; 0 for the values as they are.
_REFERENCE = (
    ("loss", "training loss, nats a token (mean of 100 steps)", 100),
    ("validation_cross_entropy", "validation cross-entropy, nats a token", 0),
    ("validation_min_ade_m", "minADE of 8 futures, m", 0),
    ("validation_realism", "realism of 8 futures", 0),
)
_POLICY = (
    ("kl", "KL(policy || reference), nats", 20_000),
    ("entropy", "entropy of the policy, nats", 20_000),
    ("log_likelihood", "log-likelihood of what was done, nats", 20_000),
    ("collision_rate", "agents that collide in 8 s", 20_000),
    ("off_road_rate", "vehicles that leave the road in 8 s", 20_000),
    ("goal_rate", "moving agents that reach their goal", 20_000),
    ("evaluation_realism", "realism on held-out scenes", 0),
    ("evaluation_speed_ratio_8s", "speed after 8 s, of the log's", 0),
    ("evaluation_standing", "share standing after 8 s", 0),
)
_ANCHORED = ("kl", "log_likelihood")
# beta to figures; the paper's log-likelihoods have another scale.
_PAPER = {"0": {"kl": 2.05, "entropy": 1.0}, "0.01": {"kl": 0.78, "entropy": 1.8}}
_PAPER["0.1 and 1"] = {"kl": 0.59, "entropy": 2.5}


def _curve(table: pd.DataFrame, steps: str, column: str, window: int) -> pd.Series:
    """Values of a column by steps, where it has any."""
    values = table.set_index(steps)[column].dropna() if column in table else pd.Series(dtype=float)
    if column in _ANCHORED and not values.any():
        return values.iloc[:0]
    if not window or values.empty:
        return values
    groups = values.groupby((values.index - 1) // window)
    return pd.Series(groups.mean().to_numpy(), index=[part.index[-1] for _, part in groups])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--curve", action="append", required=True, metavar="NAME=FILE", help="metrics.csv; repeat")
    parser.add_argument("--out", type=Path, required=True, help="PNG file")
    options = parser.parse_args(arguments)
    tables = {name: pd.read_csv(path) for name, _, path in (text.rpartition("=") for text in options.curve)}
    steps = "agent_steps" if all("agent_steps" in table for table in tables.values()) else "step"
    panels = _POLICY if steps == "agent_steps" else _REFERENCE
    rows = 3 if len(panels) > 6 else 2
    columns = len(panels) // rows
    figure, axes = plt.subplots(rows, columns, figsize=(4.4 * columns, 3.2 * rows), constrained_layout=True)
    for axis, (column, title, window) in zip(axes.flat, panels, strict=True):
        for name, table in tables.items():
            curve = _curve(table, steps, column, window)
            axis.plot(curve.index, curve.to_numpy(), label=name, marker=None if window else "o", markersize=3)
        for beta, ends in _PAPER.items() if panels is _POLICY else ():
            if column in ends:
                axis.axhline(ends[column], color="grey", linestyle="--", linewidth=0.8)
                place = {"xy": (1.0, ends[column]), "xycoords": ("axes fraction", "data")}
                axis.annotate(f"paper, beta {beta}", **place, fontsize=7, ha="right", va="bottom", color="grey")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(steps.replace("_", "-"), fontsize=8)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.savefig(options.out, dpi=90)
    return 0


if __name__ == "__main__":
    sys.exit(main())

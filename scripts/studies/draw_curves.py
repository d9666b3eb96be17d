"""Learning curves of the reference: what ``metrics.csv`` of ``pretrain`` and ``finetune`` hold, drawn together.

    python scripts/studies/draw_curves.py --curve "real=runs/a/metrics.csv" --curve "generated=runs/b/metrics.csv" \
        --out curves.png
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_PANELS = (
    ("loss", "training loss, nats a token (mean of 100 steps)"),
    ("validation_cross_entropy", "validation cross-entropy, nats a token"),
    ("validation_min_ade_m", "minADE of 8 futures, m"),
    ("validation_realism", "realism of 8 futures"),
)
_SMOOTHED = 100


def _series(path: Path, column: str) -> tuple[list[int], list[float]]:
    """Steps and values of a column, where it has any; losses are averaged."""
    with path.open() as file:
        rows = [(int(row["step"]), float(row[column])) for row in csv.DictReader(file) if row.get(column)]
    if column != "loss":
        return [step for step, _ in rows], [value for _, value in rows]
    parts = [rows[start : start + _SMOOTHED] for start in range(0, len(rows), _SMOOTHED)]
    return [part[-1][0] for part in parts], [sum(value for _, value in part) / len(part) for part in parts]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--curve", action="append", required=True, metavar="NAME=FILE", help="a metrics.csv; repeat"
    )
    parser.add_argument("--out", type=Path, required=True, help="PNG")
    options = parser.parse_args(arguments)
    curves = [text.rpartition("=")[::2] for text in options.curve]
    figure, axes = plt.subplots(2, 2, figsize=(9.0, 6.0), constrained_layout=True)
    for axis, (column, title) in zip(axes.flat, _PANELS, strict=True):
        for name, path in curves:
            steps, values = _series(Path(path), column)
            axis.plot(steps, values, label=name, marker=None if column == "loss" else "o", markersize=3)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    figure.savefig(options.out, dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())

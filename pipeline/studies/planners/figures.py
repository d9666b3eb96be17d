"""Figures of a planner evaluation: how simulators agree, and planners' scores in each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.studies.planners.scores import SCORE_NAMES
from pipeline.studies.planners.summary import Summary
from pipeline.studies.planners.tables import title_of
from pipeline.viewing.figures import paper_figure, save_figure

__all__ = ["agreement_figure", "score_figure", "write_planner_figures"]

Floats = NDArray[np.float64]


def agreement_figure(summary: Summary) -> Any:
    """A matrix of simulators for each score: Pearson's coefficient of the planners' means."""
    names = [title_of(name) for name in summary.simulators]
    columns = 3
    rows = -(-len(SCORE_NAMES) // columns)
    with paper_figure(rows, columns, 6.9, 2.1 * rows) as (figure, axes):
        for axis, score in zip(axes.flat, SCORE_NAMES):
            matrix = _matrix(summary, score)
            image = axis.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu")
            for (row, column), value in np.ndenumerate(matrix):
                known = bool(np.isfinite(value))
                colour = "white" if known and abs(value) > 0.6 else "black"
                text = f"{value:.2f}" if known else "-"
                axis.text(column, row, text, ha="center", va="center", color=colour)
            axis.set_title(title_of(score))
            axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
            axis.set_yticks(range(len(names)), names)
        for axis in axes.flat[len(SCORE_NAMES) :]:
            axis.axis("off")
        figure.colorbar(image, ax=axes, shrink=0.5, label="Pearson, planners' means over scenes")
    return figure


def _matrix(summary: Summary, score: str) -> Floats:
    """[S, S] coefficients, NaN where undefined."""
    place = {name: index for index, name in enumerate(summary.simulators)}
    matrix = np.eye(len(place))
    for one in summary.agreement[score]:
        if one.over == "planners" and one.method == "pearson":
            a, b = place[one.first], place[one.second]
            matrix[a, b] = matrix[b, a] = one.value
    return matrix


def score_figure(summary: Summary, score: str = "pdm") -> Any:
    """A planner a row, its mean score and interval in every simulator."""
    count = len(summary.simulators)
    with paper_figure(1, 1, 5.0, 0.26 * len(summary.planners) + 0.8) as (figure, axes):
        axis = axes[0, 0]
        for index, simulator in enumerate(summary.simulators):
            found = [summary.means[simulator][planner][score] for planner in summary.planners]
            value = np.array([one.value for one in found])
            ends = np.abs(np.array([[one.low, one.high] for one in found]).T - value)
            place = np.arange(len(found)) + (index - (count - 1) / 2) * 0.7 / count
            mark, label = "osD^v"[index % 5], title_of(simulator)
            axis.errorbar(value, place, xerr=np.nan_to_num(ends), fmt=mark, markersize=3, label=label)
        axis.set_yticks(range(len(summary.planners)), [name.replace("_", " ") for name in summary.planners])
        axis.invert_yaxis()
        axis.set_xlabel(f"{title_of(score)}, mean over {len(summary.scenes)} scenes")
        axis.set_xlim(-0.02, 1.02)
        figure.legend(loc="outside upper center", ncol=count)
    return figure


def write_planner_figures(folder: Path, summary: Summary) -> list[Path]:
    """PDF and PNG of both figures."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"scores": score_figure(summary)}
    if len(summary.simulators) > 1:
        figures["agreement"] = agreement_figure(summary)
    return [path for name, figure in figures.items() for path in save_figure(figure, folder, name)]

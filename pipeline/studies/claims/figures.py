"""Figures of claims, in the style of all figures for papers: what was measured is filled, the paper's is hollow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from pipeline.drawing.palette import COLOURS, SERIES
from pipeline.evaluation.statistics import Array, Interval
from pipeline.studies.claims.report import Row
from pipeline.viewing.figures import COLUMN_INCHES, STYLE

_MARKS = ("o", "^", "D", "s", "v", "P", "X", "<")
_LABELS = {
    "realism": "realism",
    "kl": "KL to the reference, nats",
    "entropy": "entropy, nats",
    "evaluation_realism": "realism, held-out scenes",
    "evaluation_min_ade_m": "minADE, held-out scenes, m",
    "minade": "minADE, m",
}


def _errors(values: Sequence[Interval]) -> Array:
    """[2, n] lengths of error bars."""
    pairs = [(value.value - value.low, value.high - value.value) for value in values]
    return np.clip(np.nan_to_num(np.array(pairs).T), 0, None)


def forest_figure(rows: Sequence[Row], field: str) -> Any:
    """One figure of every row with its interval, a mark for each sampling mode."""
    names = list(dict.fromkeys(row.name for row in rows))
    modes = list(dict.fromkeys(row.drawn for row in rows))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_INCHES, 0.26 * len(names) + 0.7))
        for number, mode in enumerate(modes):
            mine = [row for row in rows if row.drawn == mode]
            at = np.array([names.index(row.name) for row in mine]) + 0.16 * (number - (len(modes) - 1) / 2)
            values = [row.measured[field] for row in mine]
            axes.errorbar(
                [value.value for value in values],
                at,
                xerr=_errors(values),
                fmt=_MARKS[number % len(_MARKS)],
                color=SERIES[number % len(SERIES)],
                markersize=2.8,
                elinewidth=0.6,
                label=mode,
            )
            _hollow(
                axes, [(row.published[field], y) for row, y in zip(mine, at, strict=True) if field in row.published]
            )
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel(_LABELS.get(field, field))
        _legend(axes)
    return figure


def _hollow(axes: Any, points: Sequence[tuple[float, float]]) -> None:
    """The paper's figures."""
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(
            x,
            y,
            "o",
            markerfacecolor="none",
            markeredgecolor="black",
            markersize=4,
            markeredgewidth=0.6,
            label="paper",
        )


def _legend(axes: Any) -> None:
    """Every label once, above the axes."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.legend(once.values(), once.keys(), loc="lower left", bbox_to_anchor=(0, 1), ncol=3, columnspacing=0.8)


def training_figure(curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> Any:
    """KL, entropy, realism and minADE in the course of trainings; a colour for each arm, a line for each seed."""
    columns = ("kl", "entropy", "evaluation_realism", "evaluation_min_ade_m")
    with plt.rc_context(STYLE):
        figure, all_axes = plt.subplots(2, 2, figsize=(2 * COLUMN_INCHES / 1.3, 3.4))
        for axes, column in zip(all_axes.flat, columns, strict=True):
            for (name, trainings), colour in zip(curves.items(), cycle(SERIES)):
                for rows in trainings:
                    points = [(row["agent_steps"], row[column]) for row in rows if column in row]
                    if points:
                        axes.plot(*zip(*points, strict=True), color=colour, label=name)
            axes.set_xlabel("agent-steps")
            axes.set_title(_LABELS[column], loc="left")
        _legend(all_axes[0, 0])
        figure.tight_layout(pad=0.4)
    return figure


def _cross(axes: Any, row: Row, field: str, **style: Any) -> None:
    """A mark at (field, realism) with the intervals of both."""
    x, y = row.measured[field], row.measured["realism"]
    axes.errorbar(x.value, y.value, xerr=_errors([x]), yerr=_errors([y]), elinewidth=0.6, label=row.name, **style)


def pairs_figure(rows: Sequence[Row], name: str) -> Any:
    """Students over their references, with the line on which both are equal."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_INCHES, 2.6))
        for row, colour, mark in zip(rows, cycle(SERIES), cycle(_MARKS)):
            _cross(axes, row, "reference", fmt=mark, color=colour, markersize=3)
        _hollow(axes, [(row.published["reference"], row.published["realism"]) for row in rows if row.published])
        low, high = axes.get_xlim()
        axes.plot((low, high), (low, high), ":", color=COLOURS["ghost"], linewidth=0.6)
        axes.set_xlabel("realism of the reference")
        axes.set_ylabel("realism of the student")
        _legend(axes)
    return figure


def sweep_figure(rows: Sequence[Row], mode: str) -> Any:
    """Realism and entropy over alpha and over beta, zero at the left."""
    mine = {row.name: row for row in rows if row.drawn == mode}
    sweeps = {
        "alpha": ["beta 0", "alpha 0.001", "alpha 0.01", "alpha 0.1"],
        "beta": ["beta 0", "beta 0.01", "spacer beta 0.1", "beta 1"],
    }
    with plt.rc_context(STYLE):
        figure, all_axes = plt.subplots(2, 2, figsize=(2 * COLUMN_INCHES / 1.3, 3.2), sharex="col", sharey="row")
        for column, (name, arms) in enumerate(sweeps.items()):
            for axes, field in zip(all_axes[:, column], ("realism", "entropy"), strict=True):
                values = [mine[arm].measured[field] for arm in arms]
                at = range(len(arms))
                axes.errorbar(
                    at,
                    [value.value for value in values],
                    yerr=_errors(values),
                    fmt="o-",
                    color=SERIES[0],
                    markersize=2.8,
                    elinewidth=0.6,
                )
                theirs = [mine[arm].published.get(field, math.nan) for arm in arms]
                axes.plot(at, theirs, "o--", color="black", markerfacecolor="none", markersize=4, linewidth=0.5)
                axes.set_xticks(at, ["0", *(arm.split()[-1] for arm in arms[1:])])
                if column == 0:
                    axes.set_ylabel(_LABELS[field])
            all_axes[1, column].set_xlabel(name)
        all_axes[0, 1].set_title("dashed: the paper", loc="right")
        figure.tight_layout(pad=0.4)
    return figure


def scatter_figure(rows: Sequence[Row], points: Mapping[str, tuple[Array, Array]]) -> Any:
    """Realism over log-likelihood: a mark with intervals for each kind of future, a dot for each scene."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_INCHES, 2.8))
        for row, colour, mark in zip(rows, cycle(SERIES), cycle(_MARKS)):
            axes.plot(*points[row.name], ".", color=colour, markersize=1.2, alpha=0.35)
            _cross(axes, row, "likelihood", fmt=mark, color=colour, markersize=3.4)
        axes.set_xlabel("mean log-likelihood of a decision under the reference, nats")
        axes.set_ylabel("realism")
        _legend(axes)
    return figure

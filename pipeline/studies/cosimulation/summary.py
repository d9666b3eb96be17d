"""Sums of worlds as rates with intervals, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.evaluation.statistics import rate
from pipeline.evaluation.tables import interval_cell, render_table

__all__ = ["RATES", "Rate", "cosimulation_table", "summarise"]

LABELS = {
    "sumo": "SUMO's own model",
    "replay": "its paths, moved by us",
    "policy": "policy",
    "constant_velocity": "constant velocity",
}


@dataclass(frozen=True)
class Rate:
    """A sum over another one: ``scale * sum(over worlds of top) / sum(over worlds of bottom)``.

    Attributes:
        title: of the row. top, bottom: names of sums (``measuring.COUNTS``). digits: shown behind the point.
        reference: the bottom is that of this driver, instead of one's own.
    """

    title: str
    top: str
    bottom: str
    scale: float = 1.0
    digits: int = 3
    reference: str | None = None


RATES: dict[str, Rate] = {
    "collisions_per_km": Rate("collisions per km", "collisions", "metres", 1000.0, 2),
    "collisions_per_hour": Rate("collisions per vehicle-hour", "collisions", "seconds", 3600.0, 1),
    "collided": Rate("vehicles that collided", "collided_vehicles", "vehicles"),
    "off_road_time": Rate("share of time off-road", "offroad_seconds", "seconds"),
    "off_road": Rate("vehicles ever off-road", "offroad_vehicles", "vehicles"),
    "wrong_way_time": Rate("share of time against traffic", "wrong_way_seconds", "seconds"),
    "red_lights_per_km": Rate("red lights run per km", "red_lights", "metres", 1000.0, 2),
    "speed": Rate("mean speed, m/s", "metres", "seconds", 1.0, 2),
    "progress": Rate("distance relative to SUMO's own", "metres", "metres", 1.0, 2, reference="sumo"),
    "hard_brakes_per_hour": Rate("others' hard brakes per hour", "hard_brakes", "other_seconds", 3600.0, 1),
    "hard_brakes_behind_taken_per_hour": Rate(
        "of these behind a taken vehicle", "hard_brakes_behind_taken", "other_seconds", 3600.0, 1
    ),
    "sumo_says_collisions_per_km": Rate(
        "collisions per km in SUMO's terms", "sumo_says_collisions", "metres", 1000.0, 2
    ),
}

World = Mapping[str, Mapping[str, float]]


def summarise(worlds: Sequence[World], seed: int) -> dict[str, dict[str, Any]]:
    """Rates of each driver with percentile bootstrap intervals over worlds.

    Args:
        worlds: for each world the sums of each driver. seed: of the resampling.

    Returns:
        For each driver ``sums``, and for each of ``RATES`` ``value`` and ``interval``, None where nobody drove.
    """

    def column(driver: str, name: str) -> np.ndarray:
        return np.array([world[driver][name] for world in worlds], dtype=np.float64)

    result: dict[str, dict[str, Any]] = {}
    for driver in worlds[0]:
        rates: dict[str, Any] = {}
        for name, one in RATES.items():
            top, bottom = column(driver, one.top), column(one.reference or driver, one.bottom)
            found = rate(top, bottom, one.scale, seed).plain()
            low, high = found["low"], found["high"]
            rates[name] = {"value": found["value"], "interval": None if low is None else [low, high]}
        sums = {name: float(column(driver, name).sum()) for name in worlds[0][driver]}
        result[driver] = {"sums": sums, **rates}
    return result


def cosimulation_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """A rate a row, a driver a column, intervals in brackets."""
    rows = [["", *(LABELS.get(driver, driver) for driver in summary)]]
    for title, name, scale, digits in (("vehicles", "vehicles", 1, 0), ("km", "metres", 1e-3, 1)):
        rows.append([title, *(f"{found['sums'][name] * scale:.{digits}f}" for found in summary.values())])
    for name, one in RATES.items():
        rows.append([one.title, *(_cell(found[name], one.digits) for found in summary.values())])
    return render_table(rows)


def _cell(found: Mapping[str, Any], digits: int) -> str:
    return interval_cell(found["value"], found["interval"], digits)

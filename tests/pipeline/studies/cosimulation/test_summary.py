"""Rates and intervals with known answers."""

from __future__ import annotations

import pytest

from pipeline.studies.cosimulation.measuring import COUNTS, RATES, cosimulation_table, summarise


def _world(**changes: float) -> dict[str, float]:
    return dict.fromkeys(COUNTS, 0.0) | {"vehicles": 10.0, "seconds": 100.0, "metres": 500.0} | changes


def test_rates_are_sums_over_sums() -> None:
    worlds = [
        {"sumo": _world(), "policy": _world(collisions=2.0, metres=250.0, collided_vehicles=5.0)},
        {"sumo": _world(metres=1500.0), "policy": _world(collisions=4.0, metres=750.0)},
    ]
    found = summarise(worlds, 0)["policy"]
    assert found["collisions_per_km"]["value"] == pytest.approx(6.0)
    assert found["collided"]["value"] == pytest.approx(0.25)
    assert found["speed"]["value"] == pytest.approx(5.0)
    assert found["progress"]["value"] == pytest.approx(0.5), "of what SUMO drove itself"
    low, high = found["collisions_per_km"]["interval"]
    # Of two worlds the extremes are either of them twice: 8 per km and 5.33 per km.
    assert (low, high) == pytest.approx((4 / 0.75, 2 / 0.25))
    assert found["hard_brakes_per_hour"] == {"value": None, "interval": None}, "nobody else drove"
    assert found["sums"]["metres"] == 1000.0


def test_a_single_world_has_no_spread() -> None:
    found = summarise([{"sumo": _world(red_lights=1.0, other_seconds=60.0, hard_brakes=1.0)}], 0)["sumo"]
    for name in RATES:
        assert found[name]["interval"] == pytest.approx([found[name]["value"]] * 2)
    assert found["hard_brakes_per_hour"]["value"] == pytest.approx(60.0)


def test_the_table_has_a_row_for_each_rate() -> None:
    lines = cosimulation_table(summarise([{"sumo": _world(), "policy": _world()}], 0)).splitlines()
    assert "SUMO's own model" in lines[0]
    assert len(lines) == 2 + 2 + len(RATES)
    assert any(line.startswith("others' hard brakes") and line.rstrip().endswith("-") for line in lines)

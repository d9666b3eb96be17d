"""Means, paired differences and tables against figures worked out by hand."""

from __future__ import annotations

import csv
import io

import pytest

from pipeline.studies.robustness.trials import SCORE_TITLES, csv_text, scores_row, summarise
from submission.realism import METRIC_FIELDS, load_config

CONFIG = load_config("2025")


def scores(*values: float) -> dict[str, dict[str, float]]:
    return {f"s{row}": dict.fromkeys(METRIC_FIELDS, value) for row, value in enumerate(values)}


def test_differences_are_paired() -> None:
    baseline, worse = scores(0.2, 0.9, 0.4), scores(0.1, 0.8, 0.3)
    summary = summarise(dict(reversed(worse.items())), baseline, CONFIG, seed=0)
    assert summary.metrics["metametric"] == pytest.approx(0.4)
    assert summary.differences["metametric"] == pytest.approx(-0.1)
    low, high = summary.difference_intervals["metametric"]
    assert (low, high) == (pytest.approx(-0.1), pytest.approx(-0.1)), "every scene lost the same"
    low, high = summary.intervals["metametric"]
    assert low < 0.3 < 0.5 < high, "though the scenes themselves differ"
    assert not summarise(baseline, None, CONFIG, seed=0).differences
    with pytest.raises(ValueError, match="same scenarios"):
        summarise(worse, scores(0.2, 0.9), CONFIG, seed=0)


def test_cells() -> None:
    plain = summarise(scores(0.5, 0.5), None, CONFIG, seed=0)
    compared = summarise(scores(0.5, 0.5), scores(0.25, 0.25), CONFIG, seed=0)
    assert len(scores_row(plain)) == len(scores_row(compared)) == len(SCORE_TITLES)
    assert scores_row(plain)[:2] == ["0.500 [0.500, 0.500]", ""]
    assert scores_row(compared)[1] == "+0.250 [+0.250, +0.250]"
    rows = list(csv.DictReader(io.StringIO(csv_text(["agent"], [(["x"], plain), (["y"], compared)]))))
    assert [row["agent"] for row in rows] == ["x", "y"]
    assert rows[0]["metametric_difference"] == ""
    assert float(rows[1]["metametric_difference"]) == 0.25
    assert float(rows[1]["simulated_collision_rate_high"]) == 0.5
    assert rows[1]["scenes"] == "2"

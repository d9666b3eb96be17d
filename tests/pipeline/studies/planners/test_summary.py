"""Adding drives up: means, who was struck, cases, and tables that say so."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from data.errors import UserError
from pipeline.evaluation.statistics import mean
from pipeline.studies.planners.pictures import choose_cases
from pipeline.studies.planners.scores import SCORE_NAMES
from pipeline.studies.planners.summary import rows_by_simulator, summarise
from pipeline.studies.planners.tables import _PUBLISHED, csv_tables, markdown_report, reaction_table, text_report

HIT_FROM_BEHIND = {"agent": 1, "seconds": 2.5, "at_fault": False, "rear_hit": True}
AT_FAULT = {"agent": 1, "seconds": 2.5, "at_fault": True, "rear_hit": False}
MEASURES = ("false_rear_end", "min_gap", "min_ttc", "strongest_deceleration", "reaction_time")


def scored(value: float, *collisions: dict) -> dict:
    return {**dict.fromkeys(SCORE_NAMES, value), "least_ttc": None, "collisions": list(collisions)}


def row(scenario_id: str, planners: dict, **manoeuvres: dict) -> dict:
    return {"scenario_id": scenario_id, "planners": planners, "manoeuvres": manoeuvres}


def found() -> list[tuple[str, dict]]:
    braked = dict.fromkeys(MEASURES, 1.0)
    deaf = {**braked, "reaction_time": None}
    return [
        ("log", row("a", {"x": scored(0.2, HIT_FROM_BEHIND), "y": scored(0.5)}, hard_brake=deaf)),
        ("log", row("b", {"x": scored(0.4, AT_FAULT), "y": scored(0.7)})),
        ("log", {"scenario_id": "c", "reason": "no AV"}),
        ("policy", row("a", {"x": scored(0.8), "y": scored(0.6)}, hard_brake=braked)),
        ("policy", row("b", {"x": scored(0.6), "y": scored(0.8)})),
        ("policy", row("c", {"x": scored(0.6), "y": scored(0.8)})),
    ]


def test_means_and_who_was_struck() -> None:
    rows, left_out = rows_by_simulator(found())
    assert left_out == {"c": "no AV"}
    summary = summarise(rows, left_out, ["x", "y"], seed=0)
    assert summary.scenes == ("a", "b")
    assert summary.means["log"]["x"]["pdm"].value == pytest.approx(0.3)
    assert summary.means["policy"]["y"]["comfort"].value == pytest.approx(0.7)
    assert summary.struck["log"]["from_behind"].value == pytest.approx(0.25)
    assert summary.struck["policy"]["from_behind"].value == 0
    assert summary.reactions["log"]["hard_brake"]["min_gap"].value == 1.0
    assert math.isnan(summary.reactions["log"]["hard_brake"]["reaction_time"].value)
    assert summary.reactions["policy"]["hard_brake"]["reaction_time"].count == 1
    assert "cut_in" not in summary.reactions["log"]


def test_reactions_are_means_over_the_scenes_in_which_they_are_defined() -> None:
    values = {"a": (1.0, 0.0, 0.1, 0.0, None), "b": (0.0, 3.0, None, 4.0, 0.4), "c": (0.5, 6.0, 2.0, 6.0, None)}
    reactions = {name: dict(zip(MEASURES, numbers, strict=True)) for name, numbers in values.items()}
    rows = {name: row(name, {"x": scored(0.5)}, cut_in=reaction) for name, reaction in reactions.items()}
    rows["d"] = row("d", {"x": scored(0.5)})
    result = summarise({"log": rows}, {}, ["x"], seed=3).reactions["log"]["cut_in"]
    assert result["false_rear_end"].value == pytest.approx(0.5)
    assert result["min_gap"] == mean(np.array([0.0, 3.0, 6.0]), 3)
    assert (result["min_ttc"].count, result["min_ttc"].value) == (2, pytest.approx(1.05))
    assert (result["reaction_time"].count, result["reaction_time"].value) == (1, 0.4)


def test_a_case_is_a_collision_that_nobody_answers_for_and_only_the_log_has() -> None:
    rows, _ = rows_by_simulator(found())
    (case,) = choose_cases(rows, 2)
    assert (case.scenario_id, case.planner, case.rear_hit, case.seconds) == ("a", "x", True, 2.5)
    rows["policy"]["a"]["planners"]["x"]["collisions"].append(AT_FAULT)
    assert choose_cases(rows, 2) == []
    assert choose_cases({"log": rows["log"]}, 2) == []


def test_tables_hold_what_was_found() -> None:
    rows, left_out = rows_by_simulator(found())
    summary = summarise(rows, left_out, ["x", "y"], seed=0)
    cases = [{**vars(case), "film": "case_1.mp4"} for case in choose_cases(rows, 2)]
    for text in (markdown_report(summary, cases), text_report(summary, cases)):
        assert "0.300" in text
        assert "hard brake" in text
        assert "case_1.mp4" in text
        assert "no AV" in text
    assert reaction_table(summary)[0][:4] == ["AV", "simulator", "scenes", "struck from behind"]
    assert reaction_table(summary)[1][:3] == ["hard brake", "log replay", "1"]
    drives = csv_tables(summary)["drives"].splitlines()
    assert len(drives) == 1 + 2 * 2 * 2
    assert drives[1].startswith("log,x,a,0.2,")
    agreement = csv_tables(summary)["agreement"].splitlines()
    assert agreement[0] == "score,first,second,over,method,value,low,high,count,reason"
    plain = json.loads(json.dumps(summary.plain(), allow_nan=False))
    assert plain["means"]["log"]["x"]["pdm"]["value"] == pytest.approx(0.3)
    assert plain["scenes"] == 2
    assert set(plain) == {field.name for field in dataclasses.fields(summary)} - {"scores"}


def test_published_figures_are_coefficients_of_scores() -> None:
    for figures in _PUBLISHED.values():
        assert set(figures) <= set(SCORE_NAMES)
        assert all(-1.0 <= value <= 1.0 for value in figures.values())


def test_no_scene_at_all_is_one_line() -> None:
    rows, left_out = rows_by_simulator([("log", {"scenario_id": "c", "reason": "no AV"})])
    with pytest.raises(UserError, match="c: no AV"):
        summarise(rows, left_out, ["x"], seed=0)


def test_the_clearest_cases_come_first_and_one_a_scene() -> None:
    """Struck from behind, then good among agents that answer, then wronged most."""
    beside = {**HIT_FROM_BEHIND, "rear_hit": False}
    log, answer = {}, {}
    for name, hits, before, after in (
        ("side", [beside], 0.1, 0.9),
        ("rear", [HIT_FROM_BEHIND], 0.5, 0.62),
        ("poor", [HIT_FROM_BEHIND], 0.1, 0.5),
        ("wronged", [HIT_FROM_BEHIND], 0.2, 0.58),
        ("mixed", [HIT_FROM_BEHIND, AT_FAULT], 0.1, 0.9),
        ("log", [HIT_FROM_BEHIND], 0.1, 0.9),
    ):
        planner = "log" if name == "log" else "x"
        log[name] = row(name, {planner: scored(before, *hits)})
        answer[name] = row(name, {planner: scored(after)})
    log["rear"]["planners"]["y"], answer["rear"]["planners"]["y"] = scored(0.5, HIT_FROM_BEHIND), scored(0.3)
    rows = {"log": log, "reference": {}, "policy": answer}
    cases = choose_cases(rows, 9)
    assert [case.scenario_id for case in cases] == ["wronged", "rear", "poor", "side"]
    assert [case.planner for case in cases] == ["x"] * 4
    assert {case.simulator for case in cases} == {"policy"}
    assert (cases[0].log_score, cases[0].score) == (0.2, 0.58)
    assert [case.scenario_id for case in choose_cases(rows, 2)] == ["wronged", "rear"]

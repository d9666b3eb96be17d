"""Suspicions of many scenarios as a line a kind."""

from __future__ import annotations

import pytest

from submission.suspicion import Suspicion, Tally


def turned(count: int) -> Suspicion:
    return Suspicion("headings are turned", (f"object 1: {count}", f"object 2: {count}"), count, 10)


def test_a_suspicion_is_one_line() -> None:
    assert str(turned(4)) == "headings are turned (4 of 10 trajectories): object 1: 4; object 2: 4"
    assert (
        str(Suspicion("joint scenes are repeated", ("all the same",))) == "joint scenes are repeated: all the same"
    )


def test_examples_are_of_two_scenarios_where_there_are_two() -> None:
    tally = Tally()
    tally.add("scenario a", turned(4))
    assert tally.lines() == [
        "headings are turned (4 of 10 trajectories in 1 scenario): scenario a: object 1: 4; scenario a: object 2: 4"
    ]
    for name, count in (("b", 5), ("c", 6)):
        tally.add(f"scenario {name}", turned(count))
    tally.add("scenario a", Suspicion("joint scenes are repeated", ("all the same",)))
    assert tally.lines() == [
        "headings are turned (15 of 30 trajectories in 3 scenarios): "
        "scenario a: object 1: 4; scenario b: object 1: 5",
        "joint scenes are repeated: scenario a: all the same",
    ]


def test_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    tally.show()
    tally.add("m.yaml", Suspicion("metadata is not filled in", ("authors is 'A'",)))
    tally.show()
    out = capsys.readouterr()
    assert (out.out, out.err) == ("", "suspicious: metadata is not filled in: m.yaml: authors is 'A'\n")

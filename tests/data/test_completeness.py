"""What names of shards say: splits, and which shards are missing, doubled or none."""

from __future__ import annotations

import pytest

from data.completeness import Origin, Rejected, check_whole, folder_split, series_of, shard_split
from data.errors import UserError


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("training.tfrecord-00000-of-01000", "training"),
        ("validation_interactive.tfrecord-00000-of-00150", "validation_interactive"),
        ("uncompressed_scenario_validation_validation.tfrecord-00000-of-00150", "validation"),
        ("uncompressed_scenario_training_20s_training_20s.tfrecord-00000-of-01000", "training_20s"),
        ("val_0.tfrecords", "validation"),
        ("train-00000-of-00010.tfrecord", "training"),
        ("TEST.tfrecord", "testing"),
        ("my_latest.tfrecord", None),
        ("trainings.tfrecord", None),
        ("trained_testing_of_validation.tfrecord", None),
        ("latest_test.tfrecord", None),
    ],
)
def test_names_tell_the_split(name: str, split: str | None) -> None:
    assert shard_split(name) == split


def test_folders_are_named_in_full() -> None:
    assert [folder_split(name) for name in ("testing", "training_20s", "test", "my training")] == [
        "testing",
        "training_20s",
        None,
        None,
    ]


def named(*indices: int, total: int = 150, split: str = "testing") -> list[str]:
    return [f"{split}.tfrecord-{index:05d}-of-{total:05d}" for index in indices]


def test_what_is_missing_is_counted_and_named() -> None:
    (series,) = series_of(named(0, 3, total=5))
    assert series.missing() == named(1, 2, 4, total=5)
    with pytest.raises(UserError) as caught:
        check_whole("here", named(0, 3), "get them")
    assert str(caught.value) == (
        "here: 148 of 150 shards of testing are missing: testing.tfrecord-00001-of-00150, "
        "testing.tfrecord-00002-of-00150, testing.tfrecord-00004-of-00150 and 145 more; get them, or use "
        "the 2 existing ones with --partial"
    )
    check_whole("here", named(*range(150)), "get them")
    check_whole("here", named(0, 3), "get them", lambda name: name in named(0, 3))


def test_a_part_may_be_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACER_PARTIAL", "1")
    check_whole("here", named(0, 3), "get them")


def test_series_of_other_names_are_counted_apart() -> None:
    names = ["a.tfrecord-0-of-2", "b-00001-of-00002.tfrecord", "c.tfrecord", "d_00000_of_00002.tfrecord"]
    assert [(series.label, series.missing()) for series in series_of(names)] == [
        ("a.tfrecord", ["a.tfrecord-1-of-2"]),
        ("b", ["b-00000-of-00002.tfrecord"]),
        ("d", ["d_00001_of_00002.tfrecord"]),
    ]


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ("testing.tfrecord-00000-of-00003", "one of 3 shards, but testing.tfrecord-00000-of-00002 is one of 2"),
        ("testing.tfrecord-00000-of-00002.gz", "the same shard as testing.tfrecord-00000-of-00002"),
        ("uncompressed_scenario_testing_testing.tfrecord-00000-of-00002", "the same shard as"),
        ("Copy of testing.tfrecord-00000-of-00002", "the same shard as"),
        ("testing.tfrecord-0-of-2", "the same shard as"),
        ("testing.tfrecord-00002-of-00002", "beyond the 2 shards"),
        *(
            (f"testing.tfrecord-00001-of-00002{end}", "not the name of a complete shard")
            for end in ("_.gstmp", ".part", ".crdownload", ".6eF5b5da", " (1)", ".1", "~", ".aria2", ".md5")
        ),
        ("scenes.tfrecord.part", "not the name of a complete shard"),
        ("scenes.tfrecord_.gstmp", "not the name of a complete shard"),
    ],
)
def test_contradictions_are_errors_even_of_a_part(other: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACER_PARTIAL", "1")
    with pytest.raises(UserError, match=text) as caught:
        check_whole("here", ["testing.tfrecord-00000-of-00002", other], "get them")
    assert str(caught.value).startswith(f"{other}: ")


def test_an_origin_says_what_did_not_come_along() -> None:
    whole = Origin(tuple(named(*range(150))))
    assert (whole.absence, whole.rejection, whole.figures()) == ("", "", {})
    assert whole.shortage(44_919) == "44919 of the 44920 scenarios that this split of WOMD has"
    assert whole.shortage(44_920) == ""
    # Of another number of shards, such as generated traffic, it is not known.
    assert Origin(tuple(named(*range(4), total=4))).shortage(3) == ""
    assert Origin(tuple(named(*range(150), split="validation_interactive"))).shortage(3) == ""
    part = Origin(tuple(named(0, 3))) + Origin(
        rejected=(Rejected("f", "1", "duplicate", "x occurs before"), Rejected("f", "2", "proto", "no message"))
    )
    assert part.absence.startswith("148 of 150 shards of testing are missing (testing.tfrecord-00001-of-00150, ")
    assert part.rejection == "1 record was rejected at ingest (f: record 2: no message)"
    assert part.figures() == {"missing_shards": 148, "rejected": 2}

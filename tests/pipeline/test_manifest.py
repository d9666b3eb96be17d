"""When a stage counts as done, and what happens to what it left."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from data.files import read_json
from pipeline.manifest import Recipe, begin, finish, read_manifest, stale_reason

RECIPE = Recipe(config={"steps": 3, "net": {"width": 8}}, seed=0, code="c", inputs={"tokenize": "1"})


def done(folder: Path, recipe: Recipe = RECIPE) -> Path:
    stage = folder / "stage"
    begin(stage, recipe, folder / "replaced")
    (stage / "sub").mkdir(exist_ok=True)
    (stage / "sub" / "output.bin").write_bytes(b"12345")
    finish(stage, "stage", recipe, {"loss": 1.5}, 2.0, 100.0)
    return stage


def test_finished_stage_is_fresh(tmp_path: Path) -> None:
    stage = done(tmp_path)
    assert stale_reason(stage, RECIPE) is None
    manifest = read_manifest(stage)
    assert manifest is not None
    assert manifest.figures == {"loss": 1.5}
    assert manifest.outputs["sub/output.bin"]["bytes"] == 5
    assert not (stage / "started.json").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config": {"steps": 4, "net": {"width": 8}}}, "changed: steps 3 -> 4"),
        ({"config": {"steps": 3, "net": {"width": 9}}}, "changed: net.width 8 -> 9"),
        ({"config": {"steps": 3, "net": {"width": 8}, "new": 1}}, "changed: new None -> 1"),
        ({"seed": 1}, "changed: seed 0 -> 1"),
        ({"code": "d"}, "the code changed"),
        ({"inputs": {"tokenize": "2"}}, "new input: tokenize"),
    ],
)
def test_every_part_of_the_recipe_counts(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    stage = done(tmp_path)
    found = stale_reason(stage, dataclasses.replace(RECIPE, **change))  # type: ignore[arg-type]
    assert found is not None
    assert found.startswith(reason)


def test_missing_or_cut_outputs_are_noticed(tmp_path: Path) -> None:
    stage = done(tmp_path)
    (stage / "sub" / "output.bin").write_bytes(b"123")
    assert stale_reason(stage, RECIPE) == "sub/output.bin is missing or incomplete"
    (stage / "sub" / "output.bin").unlink()
    assert stale_reason(stage, RECIPE) == "sub/output.bin is missing or incomplete"
    assert stale_reason(tmp_path / "nothing", RECIPE) == "not done yet"


def test_interrupted_work_is_kept_only_for_the_same_recipe(tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    begin(stage, RECIPE, tmp_path / "replaced")
    (stage / "partial").write_text("half")
    (stage / ".output.bin.x1.part").write_text("a quarter")
    assert stale_reason(stage, RECIPE) == "interrupted, going on"
    begin(stage, RECIPE, tmp_path / "replaced")
    assert (stage / "partial").read_text() == "half"
    assert not (stage / ".output.bin.x1.part").exists()
    begin(stage, dataclasses.replace(RECIPE, seed=5), tmp_path / "replaced")
    assert not (stage / "partial").exists()
    assert read_json(stage / "started.json")["seed"] == 5


def test_a_finished_result_is_moved_aside_not_deleted(tmp_path: Path) -> None:
    done(tmp_path)
    done(tmp_path, dataclasses.replace(RECIPE, seed=1))
    done(tmp_path, dataclasses.replace(RECIPE, seed=2))
    kept = read_manifest(tmp_path / "replaced")
    assert kept is not None
    assert kept.recipe.seed == 1


def test_an_unreadable_manifest_is_not_done(tmp_path: Path) -> None:
    stage = done(tmp_path)
    (stage / "manifest.json").write_text('{"stage": "x"')
    assert stale_reason(stage, RECIPE) == "not done yet"

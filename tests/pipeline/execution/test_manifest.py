"""When a piece of work counts as done, and what happens to what it left."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from pipeline.execution.manifest import (
    Manifest,
    Recipe,
    Work,
    begin,
    finish,
    is_settled,
    look,
    read_manifest,
    set_aside,
)

RECIPE = Recipe(config={"steps": 3, "net": {"width": 8}, "workers": 2}, seed=0, code="c", inputs={"tokenize": "1"})
# Every part of a recipe that counts, and how its change is told.
CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"config": {"steps": 4, "net": {"width": 8}}}, "steps 3 -> 4"),
    ({"config": {"steps": 3, "net": {"width": 9}}}, "net.width 8 -> 9"),
    ({"config": {"steps": 3, "net": {"width": 8}, "new": 1}}, "new None -> 1"),
    ({"seed": 1}, "seed 0 -> 1"),
    ({"code": "d"}, "the code changed"),
    ({"inputs": {"tokenize": "2"}}, "new input: tokenize"),
]


def work_in(folder: Path, **fields: Any) -> Work:
    return Work(folder / "stage", "stage", folder / "replaced" / "stage", **fields)


def done(folder: Path, recipe: Recipe = RECIPE, content: bytes = b"12345") -> Work:
    work = unfinished(folder, recipe)
    (work.folder / "sub").mkdir(exist_ok=True)
    (work.folder / "sub" / "output.bin").write_bytes(content)
    finish(work, recipe, {"loss": 1.5, "odd": float("nan"), "where": folder}, 2.0, 100.0)
    return work


def unfinished(folder: Path, recipe: Recipe = RECIPE, **fields: Any) -> Work:
    work = work_in(folder, **fields)
    begin(work, recipe, look(work, recipe))
    return work


def manifest_of(folder: Path) -> Manifest:
    found = read_manifest(folder)
    assert found is not None
    return found


def test_finished_work_is_fresh(tmp_path: Path) -> None:
    work = done(tmp_path)
    assert look(work, RECIPE).reason is None
    manifest = manifest_of(work.folder)
    assert manifest.figures == {"loss": 1.5, "odd": None, "where": str(tmp_path)}
    assert manifest.outputs["sub/output.bin"]["bytes"] == 5
    assert not work.started.exists()


@pytest.mark.parametrize(("change", "told"), CHANGES)
def test_every_part_of_the_recipe_counts(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    work = done(tmp_path)
    state = look(work, dataclasses.replace(RECIPE, **change))
    assert state.reason == f"changed: {told}"
    assert state.finished
    assert not state.fits


@pytest.mark.parametrize(("change", "told"), CHANGES)
def test_unfinished_work_of_another_recipe_is_kept_and_the_change_is_told(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    work, changed = unfinished(tmp_path), dataclasses.replace(RECIPE, **change)
    (work.folder / "training.ckpt").write_text("half")
    (work.folder / "sub").mkdir()
    state = look(work, changed)
    assert state.reason == f"interrupted, and changed since: {told}"
    assert begin(work, changed, state) == f"what was done is kept in {tmp_path / 'replaced' / 'stage'}"
    assert (tmp_path / "replaced" / "stage" / "training.ckpt").read_text() == "half"
    assert (tmp_path / "replaced" / "stage" / "started.json").exists()
    assert [path.name for path in work.folder.iterdir()] == ["started.json"]
    assert look(work, changed).reason == "interrupted, going on"


def test_options_that_only_say_how_change_nothing(tmp_path: Path) -> None:
    other = dataclasses.replace(RECIPE, config={**RECIPE.config, "workers": 7, "checkpoint_every": 3})
    assert look(done(tmp_path), other).reason is None
    assert look(unfinished(tmp_path / "b"), other).fits


def test_many_changes_are_counted(tmp_path: Path) -> None:
    other = dataclasses.replace(RECIPE, config=dict.fromkeys("abcd", 1), seed=3)
    assert look(done(tmp_path), other).reason == ("changed: seed 0 -> 3, a None -> 1, b None -> 1 and 4 more")


def test_missing_or_cut_outputs_are_noticed(tmp_path: Path) -> None:
    work = done(tmp_path)
    (work.folder / "sub" / "output.bin").write_bytes(b"123")
    assert look(work, RECIPE).reason == "sub/output.bin is missing or incomplete"
    (work.folder / "sub" / "output.bin").unlink()
    assert look(work, RECIPE).reason == "sub/output.bin is missing or incomplete"
    assert look(work_in(tmp_path / "nothing"), RECIPE).reason == "not done yet"


def test_outputs_that_were_changed_are_noticed(tmp_path: Path) -> None:
    work = done(tmp_path)
    output = work.folder / "sub" / "output.bin"
    output.write_bytes(b"12346")
    state = look(work, RECIPE)
    assert (state.reason, state.fits) == ("sub/output.bin was changed since it was written", False)
    output.write_bytes(b"12345")
    assert look(work, RECIPE).reason is None


def test_interrupted_work_of_the_same_recipe_goes_on(tmp_path: Path) -> None:
    work = unfinished(tmp_path)
    (work.folder / "partial").write_text("half")
    (work.folder / ".output.bin.x1.part").write_text("a quarter")
    assert look(work, RECIPE).reason == "interrupted, going on"
    assert begin(work, RECIPE, look(work, RECIPE)) == ""
    assert (work.folder / "partial").read_text() == "half"
    assert not (work.folder / ".output.bin.x1.part").exists()


def test_every_generation_is_kept(tmp_path: Path) -> None:
    for seed in range(4):
        done(tmp_path, dataclasses.replace(RECIPE, seed=seed))
    assert [manifest_of(tmp_path / "replaced" / name).recipe.seed for name in ("stage", "stage.2", "stage.3")] == [
        0,
        1,
        2,
    ]
    assert manifest_of(tmp_path / "stage").recipe.seed == 3


@pytest.mark.parametrize("torn", ["", '{"stage": "x"', "[]", '{"config": 3}', "\0\xff"])
def test_damaged_notes_lose_nothing(tmp_path: Path, torn: str) -> None:
    finished, begun = done(tmp_path / "a"), unfinished(tmp_path / "b")
    (begun.folder / "half").write_text("half")
    finished.manifest.write_text(torn, encoding="latin-1")
    begun.started.write_text(torn, encoding="latin-1")
    assert look(finished, RECIPE).reason == f"{finished.manifest} is damaged"
    assert "started.json is damaged" in str(look(begun, RECIPE).reason)
    for work in (finished, begun):
        begin(work, RECIPE, look(work, RECIPE))
        assert [path.name for path in work.folder.iterdir()] == ["started.json"]
    assert (tmp_path / "a" / "replaced" / "stage" / "sub" / "output.bin").read_bytes() == b"12345"
    assert (tmp_path / "b" / "replaced" / "stage" / "half").read_text() == "half"


def test_files_that_nothing_tells_of_are_kept(tmp_path: Path) -> None:
    work = work_in(tmp_path)
    work.folder.mkdir()
    (work.folder / "policy.ckpt").write_text("precious")
    begin(work, RECIPE, look(work, RECIPE))
    assert (tmp_path / "replaced" / "stage" / "policy.ckpt").read_text() == "precious"


def test_fresh_starts_over(tmp_path: Path) -> None:
    work = done(tmp_path / "a")
    assert not is_settled(work, look(work, RECIPE), fresh=True, keep=False)
    begin(work, RECIPE, look(work, RECIPE), fresh=True)
    assert (tmp_path / "a" / "replaced" / "stage" / "manifest.json").exists()
    half = unfinished(tmp_path / "b")
    (half.folder / "half").touch()
    begin(half, RECIPE, look(half, RECIPE), fresh=True)
    assert not (half.folder / "half").exists()


def test_keep_leaves_what_is_finished_and_says_what_unfinished_work_went_on_despite(tmp_path: Path) -> None:
    other = dataclasses.replace(RECIPE, seed=5)
    work = done(tmp_path / "a")
    assert is_settled(work, look(work, other), fresh=False, keep=True)
    half = unfinished(tmp_path / "b", goes_on=True)
    (half.folder / "half").touch()
    state = look(half, other)
    assert not is_settled(half, state, fresh=False, keep=True)
    assert begin(half, other, state, keep=True) == "going on all the same (--keep)"
    assert (half.folder / "half").exists()
    # A second interruption, without a further change.
    begin(half, other, look(half, other))
    assert finish(half, other, {}, 1.0, 1.0).despite == ["seed 0 -> 5"]


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    other = dataclasses.replace(RECIPE, seed=5)
    half = unfinished(tmp_path / "a")
    (half.folder / "half").touch()
    with pytest.raises(UserError, match=r"cannot be gone on with \(seed 0 -> 5\): results of two settings"):
        is_settled(half, look(half, other), fresh=False, keep=True)
    cut = done(tmp_path / "b")
    (cut.folder / "sub" / "output.bin").unlink()
    with pytest.raises(UserError, match=r"sub/output\.bin is missing or incomplete, so that it cannot be kept"):
        is_settled(cut, look(cut, RECIPE), fresh=False, keep=True)
    torn = done(tmp_path / "c")
    torn.manifest.write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged, so that nothing tells"):
        is_settled(torn, look(torn, RECIPE), fresh=False, keep=True)


def test_equal_outputs_are_equal_whoever_made_them(tmp_path: Path) -> None:
    contents = []
    for number, (name, content) in enumerate([("a", b"1"), ("b", b"1"), ("c", b"2")]):
        work = done(tmp_path / name, content=content)
        (work.folder / "tensorboard").mkdir()
        (work.folder / "tensorboard" / "events").write_text(str(number))
        (work.folder / ".receipts").mkdir()
        (work.folder / ".receipts" / "note").write_text(str(number))
        contents.append(finish(unfinished_again(work), RECIPE, {}, 1.0, 1.0).content)
    assert contents[0] == contents[1] != contents[2]


def unfinished_again(work: Work) -> Work:
    begin(work, RECIPE, look(work, RECIPE))
    return work


def test_only_what_belongs_to_it_is_moved(tmp_path: Path) -> None:
    work = Work(tmp_path, "pretrain", tmp_path / "replaced" / "pretrain", ("*.ckpt", "curves"), ".pretrain.")
    begin(work, RECIPE, look(work, RECIPE))
    (tmp_path / "a.ckpt").touch()
    (tmp_path / "curves").mkdir()
    (tmp_path / "notes.txt").touch()
    finish(work, RECIPE, {}, 1.0, 1.0)
    assert set_aside(work) == tmp_path / "replaced" / "pretrain"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "replaced"]
    kept = sorted(path.name for path in (tmp_path / "replaced" / "pretrain").iterdir())
    assert kept == ["a.ckpt", "curves", "manifest.json"]

"""The scripts around self-play run: a study of two variants from beginning to end, and its curves."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from data.store import shard_name, write_shard
from models.reference.checkpoint import save_reference
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene

SCRIPTS = Path(__file__).parents[2] / "scripts" / "studies"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_study_goes_on_and_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores = [tmp_path / split for split in ("training", "validation")]
    for store, seeds in zip(stores, ((0, 1), (2, 3)), strict=True):
        store.mkdir()
        write_shard(store / shard_name(store.name, 0, 1), [random_scene(seed, agents=4) for seed in seeds])
    save_reference(tmp_path / "reference.ckpt", make_model(2))
    study = script("selfplay_study")
    arguments = ["--training", str(stores[0]), "--scenarios", str(stores[1]), "--out", str(tmp_path / "study")]
    arguments += [
        "--reference",
        str(tmp_path / "reference.ckpt"),
        "--steps",
        "200",
        "--seeds",
        "2",
        "--workers",
        "1",
    ]
    arguments += ["--preset", "smoke", "--options", "policy.embedding=8", "tensorboard=false", "max_agents=8"]
    assert study.main([*arguments, "--variants", "ppo"]) == 0
    first = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1:3] for line in first[2:]] == [
        [seed, way] for seed in ("0", "1") for way in ("all", "top 5")
    ]
    results = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").glob("*/result.json")}
    assert study.main([*arguments, "--variants", "ppo", "hr-ppo"]) == 0
    every, differences = capsys.readouterr().out.split("\n\n")
    assert len(every.splitlines()) == 8
    assert [line.split(" | ")[:2] for line in differences.splitlines()[2:]] == [["| hr-ppo", "1"]]
    assert differences.startswith("| against ppo (2) | trainings | realism")
    assert all(path.stat().st_mtime_ns == time for path, time in results.items()), "what was done stays"
    assert (tmp_path / "study" / "clone_0" / "policy.ckpt").exists()
    assert study.main([*arguments, "--variants", "ppo", "large", "--list"]) == 0
    assert [line.rsplit(": ", 1)[1] for line in capsys.readouterr().out.splitlines()] == ["done", "to do", "done"]
    assert study.main([*arguments, "--variants", "ppo", "large", "--table"]) == 0
    assert capsys.readouterr().out.splitlines() == first, "what is not done is left out, and nothing is run"
    with pytest.raises(SystemExit):
        study.main([*arguments, "--variants", "pppo"])
    curves = [f"--curve={name}={tmp_path}/study/{name}_0/training/metrics.csv" for name in ("ppo", "hr-ppo")]
    assert script("draw_selfplay").main([*curves, "--window", "50", "--out", str(tmp_path / "curves.png")]) == 0
    assert (tmp_path / "curves.png").stat().st_size > 10_000

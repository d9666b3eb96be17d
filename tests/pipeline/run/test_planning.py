"""Time, disk and memory of an entry, from the manifests of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from data.files import write_json
from data.vocabulary import VocabularyConfig, build_vocabulary
from pipeline.run.gpu_plan import Gpus
from pipeline.run.measured import MEASURED, load_measured
from pipeline.run.plan import Estimate, PlanConfig, estimates, run_plan
from pipeline.run.presets import PRESETS, load_preset
from tests.models.scenes import random_scene

CORES = len(os.sched_getaffinity(0))
FIT: dict[str, Any] = {"steps": 10, "batch_size": 4}
MADE: dict[str, dict[str, Any]] = {
    "tokenize": {
        "figures": {
            "training_ingest_scenes_per_second_per_core": 20.0,
            "training_store_bytes_per_scene": 50_000,
            "validation_store_bytes_per_scene": 60_000,
            "testing_store_bytes_per_scene": 20_000,
        }
    },
    "pretrain": {"config": {"size": "micro", "model": {}, "fit": FIT}, "seconds": 8.0},
    "finetune": {"config": {"fit": FIT}, "seconds": 16.0},
    "selfplay": {"config": {"agent_steps": 10}, "figures": {"trained_agent_steps_per_second": 1000.0 * CORES}},
    "sample": {
        "config": {"submission_agent": "policy"},
        "figures": {"validation_policy_scenarios_per_second": 0.5 * CORES},
    },
    "evaluate": {
        "config": {"agents": ["log", "policy"]},
        "figures": {"log_scenarios": 10, "policy_scenarios": 10},
        "seconds": 10.0,
    },
    "package": {"figures": {"scenarios": 10, "uncompressed_mb": 13.0, "archive_mb": 5.0}, "seconds": 1.0},
    "validate": {"seconds": 0.5},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    vocabulary = build_vocabulary([random_scene(0)], VocabularyConfig(size=8, max_segments=500), 0)
    (tmp_path / "tokenize").mkdir()
    vocabulary.save(tmp_path / "tokenize" / "vocabulary.pt")
    for name, values in MADE.items():
        write_json(
            tmp_path / name / "manifest.json",
            {
                "stage": name,
                "id": name,
                "recipe": {"config": values.get("config", {}), "seed": 0, "code": "", "inputs": {}},
                "figures": values.get("figures", {}),
                "seconds": values.get("seconds", 1.0),
                "peak_memory_mb": 500.0,
                "outputs": {"x": {"bytes": 2_000_000_000, "sha256": ""}},
            },
        )
    return tmp_path


def planned(run: Path, **options: Any) -> dict[str, Estimate]:
    small: dict[str, Any] = {"scenarios": 1000, "training": 10_000, "validation": 100, "settings": "scratch"}
    config = PlanConfig(**small | options)
    return {estimate.stage: estimate for estimate in estimates(config, run)}


def seconds(estimate: Estimate) -> float:
    assert estimate.seconds is not None
    return estimate.seconds


def test_estimates_are_those_of_a_calculator(run: Path) -> None:
    found = planned(run, cores=4, gpus=0)
    assert found["tokenize"].seconds == pytest.approx(11_100 / 20 / 4)
    assert found["tokenize"].disk_gb == pytest.approx((10_000 * 50 + 100 * 60 + 1000 * 20) / 1e6)
    assert found["tokenize"].memory_gb == pytest.approx(0.5 * 4)
    # The preset wants 900 steps of the batch that the run had.
    assert found["pretrain"].seconds == pytest.approx(900 * 4 * (8 * CORES / 40) / 4)
    assert found["selfplay"].seconds == pytest.approx(250_000 / 1000 / 4)
    assert found["sample"].seconds == pytest.approx(1000 / 0.5 / 4)
    assert found["sample"].disk_gb == pytest.approx(1.3)
    assert found["evaluate"].seconds == pytest.approx(100 * (10 * CORES / 20) / 4)
    assert found["package"].seconds == pytest.approx(1000 * 0.1 / 4)
    assert found["package"].disk_gb == pytest.approx(2 * 0.5)
    assert found["validate"].seconds == pytest.approx(50)


def test_distillation_is_a_part_of_self_play(run: Path) -> None:
    preset = load_preset("womd")["selfplay"]
    steps = preset["agent_steps"] + preset["distill"]["agent_steps"]
    assert steps > preset["agent_steps"]
    assert seconds(planned(run, settings="womd", cores=1, gpus=0)["selfplay"]) == pytest.approx(steps / 1000)


def test_gpus_do_the_learnt_part(run: Path) -> None:
    nothing = run / "nothing"
    alone, helped = planned(run, cores=2), planned(run, cores=2, gpus=3, gpu_speedup=10.0, measured=nothing)
    for name in ("pretrain", "finetune", "selfplay", "sample"):
        assert seconds(helped[name]) == pytest.approx(seconds(alone[name]) * 2 / 30)
        assert "a GPU is 10 cores (a guess)" in helped[name].assumption
        assert (helped[name].count, helped[name].device, alone[name].device) == (3, "GPUs", "cores")
    for name in ("tokenize", "evaluate", "package", "validate"):
        assert helped[name] == alone[name]


def test_larger_references_take_longer(run: Path) -> None:
    small, paper = planned(run, cores=2), planned(run, cores=2, settings="paper")
    growth = (paper["pretrain"].disk_gb or 0.0) / (small["pretrain"].disk_gb or 1.0)
    assert 5 < growth < 15
    assert seconds(paper["pretrain"]) == pytest.approx(
        seconds(small["pretrain"]) * growth * 500_000 * 10 / (900 * 4)
    )


def test_the_table(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = run_plan(PlanConfig(cores=2), run=run)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["stage", *MADE, "all"]
    assert figures["seconds"] > 0


@pytest.mark.parametrize("options", [{"scenarios": -1}, {"cores": -2}, {"gpu_speedup": 0.0}, {"settings": "no"}])
def test_nonsense_is_named(run: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(options))}|--preset no"):
        planned(run, **options)


def test_a_run_that_is_not_finished(run: Path) -> None:
    (run / "sample" / "manifest.json").unlink()
    with pytest.raises(UserError, match="stage sample is not finished there"):
        planned(run)


VALUES = {
    "memory of the GPU": 20.0,
    "a launch from Python": 10.0,
    "training: a whole step: operators launched": 5000,
    "a decoding step of the reference: time of the clock": 20.0,
    "training mini, 4 scenes, bf16": 1.0,
    "training mini, 4 scenes, bf16: copy": 10.0,
    "training mini, 4 scenes, bf16: forward": 20.0,
    "training mini, 4 scenes, bf16: backward": 9.0,
    "training mini, 4 scenes, bf16: optimiser": 1.0,
    "training mini, 4 scenes, bf16: largest memory of a scene": 0.5,
    "metric, 32 futures, 64 agents, map 1 times": 100.0,
    "metric, 32 futures, 64 agents, map 1 times: largest memory": 3.0,
    "32 futures by policy": 2.0,
    "32 futures by policy: largest memory": 0.1,
    "300 worlds: trained and anchored to mini, maps known": 100_000.0,
    "300 worlds: agent-steps of an update": 300_000.0,
    "300 worlds: largest memory": 12.0,
    "300 worlds: a scene: world built": 1.0,
    "300 worlds: a scene: world stacked and copied": 3.0,
    "300 worlds: a scene: map encoded": 17.0,
}


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    folder = tmp_path / "measured"
    for card, date in (("Old GPU", "2026-01-01"), ("New GPU", "2026-02-01")):
        rows = [{"name": name, "value": value} for name, value in VALUES.items()]
        check = {"card": card, "commit": "abc", "date": date, "steps": [{"step": "all", "rows": rows}]}
        write_json(folder / f"{card}.json", check)
    return folder


def test_measured_figures_go_before_guesses(measured: Path, tmp_path: Path) -> None:
    """Without a finished run, by hand from the figures above."""
    sizes: dict[str, Any] = {"scenarios": 1000, "validation": 100, "measured": measured}
    found = {one.stage: one for one in estimates(PlanConfig(gpus=4, settings="gpu", **sizes), tmp_path / "none")}
    preset = load_preset("gpu")
    assert found["pretrain"].count == 4
    # 4 of 16 scenes on each GPU take 40 ms, but their launches 50.
    assert seconds(found["pretrain"]) == pytest.approx(preset["pretrain"]["fit"]["steps"] * 0.05)
    assert (found["pretrain"].scene_gb, found["pretrain"].memory_gb) == (0.5, 2.0)
    assert seconds(found["finetune"]) == pytest.approx(preset["finetune"]["fit"]["steps"] * (40 * 0.02 + 0.05))
    # 75 worlds a GPU: 1000 agent-steps each at 100,000 a second; before that a second of 12 cores for each world.
    distilled = preset["selfplay"]["distill"]["agent_steps"]
    assert distilled > 0
    updates = (preset["selfplay"]["agent_steps"] + distilled) / (4 * 75_000)
    start = preset["selfplay"]["pool"] * (1.0 / 12 + 0.02)
    assert seconds(found["selfplay"]) == pytest.approx(start + updates * 75_000 / 100_000)
    assert found["selfplay"].memory_gb == pytest.approx(75 * 12 / 300)
    assert seconds(found["sample"]) == pytest.approx(1000 / 2.0 / preset["sample"]["workers"])
    assert "2 processes on a GPU do not slow one another" in found["sample"].assumption
    # Measured with 32 futures of 64 agents; 16,384 are driven at once.
    assert found["sample"].memory_gb == pytest.approx(2 * 0.1 * 8)
    assert "several scenes at once are no faster than one" in found["sample"].assumption
    assert seconds(found["evaluate"]) == pytest.approx(100 * 0.1 / 4)
    assert all("New GPU, commit abc" in found[name].assumption for name in ("pretrain", "selfplay", "evaluate"))
    assert found["tokenize"].seconds is found["package"].seconds is None
    assert "nothing is known without a run" in found["tokenize"].assumption


def test_of_each_figure_the_newest_check_counts(tmp_path: Path) -> None:
    def check(commit: str, date: str, **steps: dict[str, float]) -> None:
        named = [
            {"step": step, "rows": [{"name": name, "value": value} for name, value in rows.items()]}
            for step, rows in steps.items()
        ]
        write_json(tmp_path / f"{commit}.json", {"card": "GPU", "commit": commit, "date": date, "steps": named})

    check("old", "2026-01-01", one={"a": 1.0}, two={"b": 3.0})
    check("new", "2026-02-01", one={"a": 4.0}, two={})
    found = load_measured(tmp_path)
    assert found is not None
    assert found.values == {"a": 4.0, "b": 3.0}
    assert found.words == "GPU, commit new, old"


def test_worlds_that_are_built_again_and_again(measured: Path) -> None:
    gpus = Gpus(2, loaded) if (loaded := load_measured(measured)) else None
    options = {"worlds": 300, "agent_steps": 30_000_000, "pool": 900, "cache_worlds": 512}
    assert gpus is not None
    # 100 updates of 150 worlds a GPU.
    for turnover, workers, busy, new in ((0, 0, 1.5 + 150, 150), (100, 10, 5.0, 50), (10, 10, 1.5, 5)):
        found = gpus.playing({**options, "turnover": turnover, "workers": workers})
        assert found is not None
        assert found.seconds == pytest.approx(100 * (busy + 0.003 * 150 + 0.017 * new))
        assert ("which is slower" in found.basis) == (busy == 5.0)


def test_a_compiled_policy_is_planned_by_what_was_measured_of_one(measured: Path) -> None:
    content = json.loads((measured / "New GPU.json").read_text())
    plain = [row for row in content["steps"][0]["rows"] if row["name"].startswith("300 worlds: ")]
    for row in plain:
        name = row["name"].replace("300 worlds", "300 worlds, compiled")
        content["steps"][0]["rows"].append({"name": name, "value": row["value"] * (2 if "anchored" in name else 1)})
    options = {
        "worlds": 300,
        "agent_steps": 30_000_000,
        "pool": 300,
        "cache_worlds": 512,
        "workers": 0,
        "turnover": 0,
    }
    seconds = []
    for compiled in (False, True):
        loaded = load_measured(measured)
        assert loaded is not None
        found = Gpus(1, loaded).playing({**options, "compile": compiled})
        assert found is not None
        seconds.append(found.seconds)
        write_json(measured / "New GPU.json", content)
    start = 300 * 1.02
    assert seconds[0] - start == pytest.approx(2 * (seconds[1] - start))


def test_too_little_memory_is_said(measured: Path, tmp_path: Path) -> None:
    config = PlanConfig(gpus=1, settings="paper", card="old", measured=measured)
    found = {one.stage: one for one in estimates(config, tmp_path)}
    # 64 scenes of 128 agents, twice as many as the largest that was measured.
    assert found["finetune"].memory_gb == pytest.approx(64 * 0.5 * 128 / 64)
    assert found["finetune"].assumption.startswith("more memory than this GPU has")
    assert "Old GPU" in found["finetune"].assumption
    assert "more memory" not in found["pretrain"].assumption


def test_a_run_adds_what_gpus_do_not_do(run: Path, measured: Path) -> None:
    found = planned(run, cores=2, gpus=2, measured=measured)
    assert all(estimate.seconds is not None for estimate in found.values())
    assert "core" in found["tokenize"].assumption
    assert "New GPU" in found["pretrain"].assumption
    # The 2 scenes that the run had in a step, on a GPU each; a smaller size is guessed from the measured one.
    assert "size micro is" in found["pretrain"].assumption


@pytest.mark.parametrize("settings", PRESETS)
def test_the_kept_measurements_plan_every_preset(settings: str, capsys: pytest.CaptureFixture[str]) -> None:
    figures = run_plan(PlanConfig(gpus=8, settings=settings), run=Path("nowhere"))
    lines = capsys.readouterr().out.splitlines()
    assert figures["seconds"] > 0
    assert sum("NVIDIA" in line for line in lines) == (4 if settings == "leaderboard" else 5)
    assert "without what is not known" in lines[-1]


def test_measurements_of_no_such_gpu(measured: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"--card h200: nothing was measured on such a GPU \(.* has Old GPU, New GPU\)"
    ):
        estimates(PlanConfig(card="h200", measured=measured), tmp_path)
    write_json(measured / "x.json", {"steps": []})
    with pytest.raises(UserError, match=r"x\.json: not what scripts/gpu_check\.py writes \(KeyError"):
        estimates(PlanConfig(measured=measured), tmp_path)


def test_kept_measurements_name_no_machine() -> None:
    for path in MEASURED.glob("*.json"):
        content = path.read_text()
        assert "Linux-" not in content
        assert "/home" not in content

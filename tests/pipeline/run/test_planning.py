"""Time, disk and memory of an entry, from the manifests of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from data.files import write_json
from data.vocabulary import VocabularyConfig, build_vocabulary
from pipeline.run.plan import Estimate, PlanConfig, estimates, run_plan
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
    small: dict[str, Any] = {"scenarios": 1000, "training": 10_000, "validation": 100, "settings": "demo"}
    config = PlanConfig(**small | options)
    return {estimate.stage: estimate for estimate in estimates(config, run)}


def test_estimates_are_those_of_a_calculator(run: Path) -> None:
    found = planned(run, cores=4)
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


def test_gpus_do_the_learnt_part(run: Path) -> None:
    alone, helped = planned(run, cores=2), planned(run, cores=2, gpus=3, gpu_speedup=10.0)
    for name in ("pretrain", "finetune", "selfplay", "sample"):
        assert helped[name].seconds == pytest.approx(alone[name].seconds * 2 / 30)
        assert "a GPU is 10 cores (assumed)" in helped[name].assumption
    for name in ("tokenize", "evaluate", "package", "validate"):
        assert helped[name] == alone[name]


def test_larger_references_take_longer(run: Path) -> None:
    small, paper = planned(run, cores=2), planned(run, cores=2, settings="paper")
    growth = paper["pretrain"].disk_gb / small["pretrain"].disk_gb
    assert 5 < growth < 15
    assert paper["pretrain"].seconds == pytest.approx(small["pretrain"].seconds * growth * 500_000 * 10 / (900 * 4))


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

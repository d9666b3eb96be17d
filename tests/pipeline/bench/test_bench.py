"""Benchmarks say what they are asked for: every row that is promised, and rows that agree with each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.policy import PolicyConfig
from pipeline.bench import __main__ as command
from pipeline.bench import selfplay
from pipeline.bench.rows import Row
from pipeline.simulator.observation import ObservationConfig
from pipeline.simulator.world import build_world
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene

PHASES = ("observe", "policy", "simulate", "reference", "learn")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two scenes in three worlds, nothing compiled, which takes a minute."""
    scenes = [random_scene(0), random_scene(1, agents=3)]
    monkeypatch.setattr(selfplay, "load_scenes", lambda count: ("made-up scenarios", scenes))
    monkeypatch.setattr(selfplay, "_WORLDS", {"cpu": 3})
    monkeypatch.setattr(selfplay, "_NETS", ((PolicyConfig(), False), (selfplay._RECIPE.policy, False)))


@pytest.mark.usefixtures("small")
def test_selfplay_has_every_rate_phase_and_the_hours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--only", "selfplay", "--out", str(tmp_path / "bench.json")]) == 0
    rows = [Row(**row) for row in json.loads((tmp_path / "bench.json").read_text())]
    table = capsys.readouterr().out
    assert all(row.name in table for row in rows)

    def value(beginning: str) -> float:
        found = [row for row in rows if row.name.startswith(beginning)]
        # Of the usual net, and of the recipe's.
        if len(found) == 2:
            assert "the recipe's net" in found[1].name
        else:
            assert len(found) == 1
        return found[0].value

    alone, driven = value("simulator and observations alone"), value("policy in the loop")
    plain, anchored = value("trained, 4 epochs, no anchor"), value("trained, 4 epochs, anchored")
    # What contains more takes longer, but for what the machine does beside it.
    assert 2 * min(alone, driven) > plain > 0
    assert 2 * plain > anchored > 0
    assert sum(value(f"share of {phase} ") for phase in PHASES) == pytest.approx(100)
    assert all(0 < value(f"share of {phase} ") < 100 for phase in PHASES)
    assert value("the paper's 1e9 agent-steps") == pytest.approx(1e9 / anchored / 3600)
    # Half of the epochs, and few of the parked.
    assert 2 * value("trained as in the recipe") > anchored
    assert value("worlds built") > 0


def test_memory_of_a_world_is_that_of_its_tensors() -> None:
    world = build_world(random_scene(0), make_model(2).vocabulary, ObservationConfig().road_segments)
    tensors = []
    pending = [world]
    while pending:
        for item in vars(pending.pop()).values():
            if hasattr(item, "untyped_storage"):
                tensors.append(item)
            elif hasattr(item, "__dataclass_fields__"):
                pending.append(item)
    expected = sum(len(tensor.flatten()) * tensor.dtype.itemsize for tensor in tensors) / 2**20
    assert selfplay._mebibytes([world, world]) == pytest.approx(expected)
    assert expected > 0.01

"""The programs of docs/metric.md, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data.scene import CURRENT_INDEX, FUTURE_STEPS, Scene
from data.scenes_source import open_scenes
from data.tfrecord import write_records
from pipeline.stages.evaluate import EvaluateConfig, run_evaluate
from submission.protos import Rollouts, to_proto
from submission.realism import load_config, prepare_scene, score_states
from tests.builders import scenario_proto
from tests.submission.realism.trainer import quiet_trainer

_PAGE = Path(__file__).parents[3] / "docs" / "metric.md"


def still(scene: Scene) -> Tensor:
    """[4, A, 80, 4] everybody stays where they are."""
    agents, chosen = scene.agents, scene.simulated
    now = torch.cat((agents.position, agents.heading.unsqueeze(-1)), dim=-1)[chosen, CURRENT_INDEX]
    return now[:, None].expand(-1, FUTURE_STEPS, -1).expand(4, -1, -1, -1)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The programs of the page, in a folder that has the scenarios they read: three, and one without a score."""
    monkeypatch.chdir(tmp_path)
    protos = [scenario_proto(f"{index:016x}", agents=2 + index, with_map=index < 3) for index in range(4)]
    Path("womd/validation").mkdir(parents=True)
    write_records(
        Path("womd/validation/validation.tfrecord-00000-of-00001"), [one.SerializeToString() for one in protos]
    )
    blocks = re.findall(r"^```python\n(.*?)^```", _PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return [compile(text, f"docs/metric.md, program {number}", "exec") for number, text in enumerate(blocks)]


def test_a_scene_is_scored(programs: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    exec(programs[0], {"my_model": still})
    scene = open_scenes("womd/validation")[0]
    values = score_states(prepare_scene(scene), still(scene), load_config("2025")).values
    assert capsys.readouterr().out.split() == [
        str(values[name]) for name in ("metametric", "collision_indication_likelihood")
    ]


def test_a_training_scores_as_the_command_does(
    programs: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All drive at a constant speed, so the training finds a pace near 1, and the score rises."""
    own: dict[str, Any] = {"__name__": "own"}
    exec(programs[1], own)
    shown = [float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert len(shown) == 5
    assert shown[-1] > shown[0]
    assert own["model"].pace.item() == pytest.approx(1.0, abs=0.2)
    for scene in own["scenes"]:
        agent_id = scene.agents.id[scene.simulated]
        message = to_proto(Rollouts(str(scene.scenario_id), agent_id, own["simulate"](scene).detach()))
        (tmp_path / f"{scene.scenario_id}.binproto").write_bytes(message.SerializeToString())
    figures = run_evaluate(
        EvaluateConfig(workers=1), scenarios="womd/validation", rollouts=str(tmp_path), out=tmp_path / "score"
    )
    assert figures["scenarios"] == 3
    assert float(own["realism"]()) == pytest.approx(figures["metametric"], abs=1e-5)
    assert shown[-1] == pytest.approx(figures["metametric"], abs=1e-4)


def test_a_validation_step_logs_the_score(programs: list[Any], tmp_path: Path) -> None:
    space: dict[str, Any] = {"score_states": score_states}
    exec(programs[2], space)

    class Module(lightning.LightningModule):
        config = load_config("2025")
        simulate = staticmethod(still)
        validation_step = space["validation_step"]

    items: Any = [(prepare_scene(scene), scene) for scene in list(open_scenes("womd/validation"))[:3]]
    trainer = quiet_trainer(tmp_path)
    (logged,) = trainer.validate(Module(), DataLoader(items, batch_size=None), verbose=False)
    scores = [score_states(context, still(scene), Module.config).values["metametric"] for context, scene in items]
    assert logged["validation/realism"] == pytest.approx(float(torch.stack(scores).mean()), abs=1e-6)

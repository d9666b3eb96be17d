"""Presets are built as the command line builds them; those for GPUs use all of the machine they are for."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pipeline.command.cli import COMMANDS, main, preset_section, whole_run
from pipeline.command.options import command_parser, split_config
from pipeline.execution import devices
from pipeline.execution.devices import find_devices
from pipeline.run.presets import PRESETS, load_preset
from pipeline.run.run_config import RunConfig
from pipeline.run.runner import run_stages
from pipeline.run.stage_table import stages_of
from pipeline.selfplay.config import SelfPlayConfig

# The GPUs and cores of the machine that each is for.
MACHINES = {"gpu": (1, 16), "node": (8, 96), "leaderboard": (8, 96), "paper": (8, 96)}


def whole(name: str) -> Any:
    parser = command_parser("stages", run_stages, RunConfig, whole_run(load_preset(name), RunConfig), "")
    parsed = parser.instantiate(parser.parse_args([]))
    return RunConfig(**split_config(parsed, [*inspect.signature(run_stages).parameters])[1])


def with_devices(config: Any) -> Iterator[Any]:
    """Parts of a configuration that say where they are computed."""
    if hasattr(config, "device"):
        yield config
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, field.name)):
            yield from with_devices(value)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", PRESETS)
def test_every_command_is_built(command: str, name: str) -> None:
    def alone(config: Any) -> None:
        """The configuration without options of the command itself."""

    _, config_class = COMMANDS[command].load()
    section = preset_section(COMMANDS[command], load_preset(name), config_class)
    parser = command_parser(command, alone, config_class, section, "")
    fields = split_config(parser.instantiate(parser.parse_args([])), [])[1]
    config_class(**{field.name: fields[field.name] for field in dataclasses.fields(config_class)})


@pytest.mark.parametrize("name", MACHINES)
def test_all_stages_of_a_preset_for_gpus_run_on_all_of_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus, cores = MACHINES[name]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(devices, "_fault", lambda: None)
    parts = list(with_devices(whole(name)))
    assert len(parts) == 5
    for part in parts:
        found = find_devices(part.device, count=part.devices, share=getattr(part, "check_share", None))
        # The paper's 300 worlds are shared evenly by six of eight.
        assert (found.kind, found.count) == ("cuda", 6 if getattr(part, "worlds", 0) == 300 and gpus == 8 else gpus)
        if hasattr(part, "check_share"):
            assert 4 <= part.workers * found.count < cores
        else:
            assert part.workers <= cores


def test_the_recipes() -> None:
    one, node, best, paper = (whole(name) for name in MACHINES)
    assert [config.pretrain.size for config in (one, node, best, paper)] == ["mini", "mini", "tiny", "custom"]
    words = [(c.tokenize.vocabulary.size, c.tokenize.vocabulary.token_steps) for c in (node, best, paper)]
    assert words == [(200, 2), (2048, 5), (200, 2)]
    assert node.selfplay.agent_steps == paper.selfplay.agent_steps == 1_000_000_000
    assert node.selfplay.ppo.anchored
    assert all(config.finetune.fit.steps >= 5000 for config in (one, node, best, paper))
    assert paper.finetune.fit.recompute


@pytest.mark.parametrize(("name", "plays"), [("leaderboard", False), ("node", True), ("demo", True)])
def test_without_the_policy_there_is_no_self_play(name: str, plays: bool) -> None:
    config = whole(name)
    stages = stages_of("data", {*config.agents, config.submission_agent})
    assert ("selfplay" in [stage.name for stage in stages]) == plays
    assert all(set(stage.needs) <= {other.name for other in stages} for stage in stages)


def test_the_preset_of_the_paper_has_its_numbers() -> None:
    """Table A3 of arXiv 2510.18060 and GPUDrive's observation; self-play has them without a preset, too."""
    selfplay = load_preset("paper")["selfplay"]
    loop = {"epochs": 4, "minibatch": 8192, "learning_rate": 3e-4, "gamma": 0.99, "gae_lambda": 0.95, "clip": 0.2}
    ppo: dict[str, Any] = loop | {"value_weight": 0.3, "entropy_weight": 1e-4, "gradient_clip": 0.5, "beta": 0.1}
    paid = {"goal": 1.0, "collision": -0.75, "off_road": -0.75, "red_light": 0.0}
    assert selfplay["ppo"] == ppo | {"alpha": 0.0}
    assert (selfplay["agent_steps"], selfplay["max_agents"], selfplay["view"]["neighbours"]) == (10**9, 64, 63)
    assert {name: selfplay["reward"][name] for name in paid} == paid
    default = SelfPlayConfig()
    assert default.max_agents == 64
    ours = {"surrogate_weight": 1.0, "final_rate": 1.0, "running_scale": False, "target_kl": 0.0, "kl": "reverse"}
    shown = {
        "goal_dropout": 0.5,
        "controlled": "all",
        "vehicles_only": False,
        "parked_share": 1.0,
        "compared": False,
    }
    assert dataclasses.asdict(default.ppo) == ppo | ours | shown | {"alpha": 0.0, "beta_final": None}


@pytest.mark.parametrize(
    ("command", "preset"), [("pretrain", "scratch"), ("selfplay", "scratch"), ("sample", "demo")]
)
def test_a_training_alone_begins_with_random_weights_and_so_without_the_settings_of_the_demo(
    command: str, preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for chosen in ([], ["--preset", preset]):
        with pytest.raises(SystemExit):
            main([command, *chosen, "--print_config"])
        shown.append(capsys.readouterr().out)
    assert len(shown[0]) > 100
    assert shown[0] == shown[1]

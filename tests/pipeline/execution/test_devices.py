"""Devices by name: what is found, and one line where there is none; for every command that has one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import UserError
from pipeline.command.cli import COMMANDS, main
from pipeline.execution.devices import Devices, check_devices, find_devices
from pipeline.fitting import FitConfig
from pipeline.stages.pretrain import PretrainConfig


@dataclasses.dataclass
class Machine:
    """What torch is made to say."""

    patch: pytest.MonkeyPatch

    def has(self, gpus: int = 0, mps: bool = False, cuda: str | None = None) -> None:
        self.patch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        self.patch.setattr(torch.cuda, "device_count", lambda: gpus)
        self.patch.setattr(torch.backends.mps, "is_available", lambda: mps)
        self.patch.setattr(torch.version, "cuda", cuda)
        self.patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(monkeypatch)
    found.has()
    return found


@pytest.mark.parametrize(
    ("asked", "count", "gpus", "mps", "found"),
    [
        ("cpu", 1, 2, True, Devices("cpu")),
        ("cpu", 3, 0, False, Devices("cpu", count=3)),
        ("auto", 1, 0, False, Devices("cpu")),
        ("auto", 2, 2, False, Devices("cuda", count=2)),
        ("auto", 1, 0, True, Devices("mps")),
        ("gpu", 1, 1, True, Devices("cuda")),
        ("gpu", 1, 0, True, Devices("mps")),
        ("cuda", 2, 4, False, Devices("cuda", count=2)),
        ("cuda:3", 1, 4, False, Devices("cuda", 3)),
    ],
)
def test_what_is_there_is_found(
    machine: Machine, asked: str, count: int, gpus: int, mps: bool, found: Devices
) -> None:
    machine.has(gpus, mps, "12.4")
    assert find_devices(asked, count=count) == found


def test_how_lightning_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Devices("cuda", 3).name == "cuda:3"
    one = {"accelerator": "cuda", "devices": [3], "num_nodes": 1, "strategy": "auto", "precision": "bf16-mixed"}
    assert Devices("cuda", 3).launch(1, "auto") == one
    two = Devices("cpu", count=2).launch(1, "auto")
    assert (two["devices"], two["strategy"], two["precision"]) == (2, "ddp_spawn", "32-true")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert Devices("cuda").launch(2, "32-true") == {
        "accelerator": "cuda",
        "devices": 1,
        "num_nodes": 2,
        "strategy": "ddp",
        "precision": "32-true",
    }
    assert Devices("cuda").launch(1, "auto")["strategy"] == "auto"


@pytest.mark.parametrize(
    ("asked", "count", "told"),
    [
        (
            "cuda",
            1,
            r"--device cuda: there is none here: this torch \(.*\) is built for CPUs alone; .*--device cpu$",
        ),
        ("cuda:3", 1, "--device cuda:3: there is none here: this torch"),
        ("gpu", 1, "--device gpu: there is none here: this torch"),
        ("mps", 1, "--device mps: there is none here: torch finds no Apple GPU, or give --device cpu"),
        ("auto", 2, r"--devices 2: there is no GPU here: .*give --devices 1, or --device cpu for 2 processes"),
        ("xpu", 1, "--device xpu: expected cpu, cuda, cuda:N, gpu, mps or auto"),
        ("nonsense", 1, "--device nonsense: expected cpu"),
        ("cuda:", 1, "--device cuda:: expected cpu"),
        ("", 1, "--device : expected cpu"),
        ("CUDA", 1, "--device CUDA: expected cpu"),
    ],
)
def test_without_a_gpu(machine: Machine, asked: str, count: int, told: str) -> None:
    with pytest.raises(UserError, match=told):
        find_devices(asked, count=count)


def test_a_gpu_that_torch_does_not_see(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has(0, cuda="12.4")
    with pytest.raises(UserError, match=r"finds no CUDA GPU \(see nvidia-smi\)"):
        find_devices("cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=r"see nvidia-smi and CUDA_VISIBLE_DEVICES=\)"):
        find_devices("cuda")


def test_fewer_than_wanted(machine: Machine) -> None:
    machine.has(2, cuda="12.4")
    with pytest.raises(UserError, match="--device cuda:2: there is no such GPU here, only cuda:0, cuda:1"):
        find_devices("cuda:2")
    with pytest.raises(UserError, match=r"--fit\.devices 3: --fit\.device auto is 2 here \(cuda:0, cuda:1\)"):
        find_devices("auto", "--fit.device", 3)
    with pytest.raises(UserError, match="--devices 2: --device cuda:0 is 1 here"):
        find_devices("cuda:0", count=2)


def test_options_are_found_at_any_depth(machine: Machine) -> None:
    check_devices(PretrainConfig())
    with pytest.raises(UserError, match=r"--pretrain\.fit\.device cuda: there is none here"):
        check_devices(PretrainConfig(fit=FitConfig(device="cuda")), "--pretrain.")


ARGUMENTS: dict[str, list[str]] = {
    "pretrain": ["--scenes", "s", "--vocabulary", "v", "--fit.device"],
    "finetune": ["--scenes", "s", "--checkpoint", "c", "--fit.device"],
    "selfplay": ["--scenes", "s", "--reference", "r", "--device"],
    "sample": ["--scenarios", "s", "--agent", "reference", "--checkpoint", "c", "--device"],
    "robustness": ["--scenarios", "s", "--device"],
    "transfer": ["--runs", '["a", "b"]', "--device"],
    "claims": ["--run", "r", "--selfplay.device"],
    "planners": ["--run", "r", "--selfplay.device"],
    "stages": ["--run", "r", "--finetune.fit.device"],
}


def test_every_command_with_a_device_is_tried() -> None:
    def names(config: Any) -> list[str]:
        fields = dataclasses.fields(config)
        return [field.name for field in fields] + [
            name
            for field in fields
            if dataclasses.is_dataclass(value := getattr(config, field.name))
            for name in names(value)
        ]

    found = {name for name, command in COMMANDS.items() if "device" in names(command.load()[1]())}
    assert found == set(ARGUMENTS)


@pytest.mark.parametrize("asked", ["cuda", "gpu", "mps", "cuda:3", "xpu", "nonsense"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_one_line_and_nothing_made(
    name: str, asked: str, machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--folder", str(tmp_path / "out")] if name == "stages" else ["--out", str(tmp_path / "out")]
    option = ARGUMENTS[name][-1]
    assert main([name, *ARGUMENTS[name], asked, *place]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {option} {asked}: ")
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_presets_are_checked_too(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.command.cli.load_preset", lambda name: {"pretrain": {"fit": {"device": "cuda"}}})
    assert main(["pretrain", *ARGUMENTS["pretrain"][:-1], "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: --fit.device cuda: there is none here")
    assert main(["stages", "--folder", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: --pretrain.fit.device cuda: there is none here")

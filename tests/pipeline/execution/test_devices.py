"""Devices by name: what is found, and one line where there is none; for every command that has one."""

from __future__ import annotations

import dataclasses
import inspect
import multiprocessing
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import UserError
from pipeline.command import cli
from pipeline.command.cli import COMMANDS, main
from pipeline.execution import devices as module
from pipeline.execution.devices import Devices, check_devices, find_devices
from pipeline.execution.engine import EngineConfig, run_on, take_gpu
from pipeline.fitting import FitConfig
from pipeline.selfplay.config import SelfPlayConfig
from pipeline.stages.pretrain import PretrainConfig


@dataclasses.dataclass
class Machine:
    """What torch is made to say."""

    patch: pytest.MonkeyPatch

    def has(
        self,
        gpus: int = 0,
        mps: bool = False,
        cuda: str | None = None,
        driver: tuple[Path, ...] = (),
        supports: int | None = None,
    ) -> None:
        self.patch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        self.patch.setattr(torch.cuda, "device_count", lambda: gpus)
        self.patch.setattr(torch.backends.mps, "is_available", lambda: mps)
        self.patch.setattr(torch.version, "cuda", cuda)
        self.patch.setattr(module, "_DRIVER", driver)
        self.patch.setattr(module, "_driver_cuda", lambda: supports)
        self.patch.setattr(module.shutil, "which", lambda name: None)
        for name in ("CUDA_VISIBLE_DEVICES", "TORCHELASTIC_RUN_ID", "SLURM_PROCID", "LOCAL_WORLD_SIZE"):
            self.patch.delenv(name, raising=False)


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


@pytest.mark.parametrize(
    ("gpus", "worlds", "batch", "playing", "fitting"),
    [
        (8, 300, 10, 6, 8),
        (8, 2400, 64, 8, 8),
        (8, 7, 2, 7, 2),
        (8, 11, 1, 1, 1),
        (1, 300, 10, 1, 1),
        (0, 300, 10, 1, 1),
    ],
)
def test_all_devices_that_can_share_the_work(
    machine: Machine, gpus: int, worlds: int, batch: int, playing: int, fitting: int
) -> None:
    machine.has(gpus, cuda="13.0")
    kind = "cuda" if gpus else "cpu"
    playing_config, fit = SelfPlayConfig(worlds=worlds), FitConfig(batch_size=batch)
    assert find_devices("auto", count="auto", share=playing_config.check_share) == Devices(kind, count=playing)
    assert find_devices("auto", count="auto", share=fit.check_share) == Devices(kind, count=fitting)
    assert find_devices("auto", count="auto") == Devices(kind, count=max(1, gpus))
    if gpus:
        assert find_devices("cuda:0", count="auto") == Devices("cuda", 0)


def test_as_many_as_were_started_together(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.has(8, cuda="13.0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert find_devices("auto", count="auto", share=SelfPlayConfig(worlds=300).check_share).count == 4
    with pytest.raises(UserError, match="worlds is 300, which 8 devices cannot share evenly; give a multiple of 8"):
        find_devices("auto", count="auto", share=SelfPlayConfig(worlds=300, nodes=2).check_share)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    with pytest.raises(UserError, match="worlds is 300, which 8 devices cannot share evenly"):
        find_devices("cpu", count="auto", share=SelfPlayConfig(worlds=300).check_share)


@pytest.mark.parametrize(
    ("gpus", "cuda", "supports", "visible", "told"),
    [
        (0, None, 13000, None, r"this torch \(.*\) is built for CPUs alone; install one with CUDA \(pip install"),
        (
            0,
            "13.0",
            None,
            None,
            "its library libcuda.so.1 cannot be loaded; in a container, start that with --gpus",
        ),
        # As NVML sees the GPU, torch says that there is one.
        (1, "13.0", 12040, None, r"it supports CUDA 12.4 and this torch \(.*\) needs 13.0; install a newer driver"),
        (0, "12.6", 12040, "7", "finds no CUDA GPU .*CUDA_VISIBLE_DEVICES=7"),
    ],
)
@pytest.mark.parametrize("asked", ["auto", "gpu", "cuda"])
def test_a_driver_without_usable_cuda(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    cuda: str | None,
    supports: int | None,
    visible: str | None,
    told: str,
    asked: str,
) -> None:
    machine.has(gpus, cuda=cuda, driver=(Path("/"),), supports=supports)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(
        UserError, match=f"--device {asked}: there is an NVIDIA driver here, but .*{told}.*--device cpu"
    ):
        find_devices(asked)
    with pytest.raises(UserError, match=r"--fit\.device auto: there is an NVIDIA driver here"):
        check_devices(FitConfig(), "--fit.")
    assert find_devices("cpu") == Devices("cpu")


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_mean_the_cpu(machine: Machine, monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    machine.has(0, cuda="13.0", driver=(Path("/"),), supports=13000)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert find_devices("auto", count="auto").reason == "CUDA_VISIBLE_DEVICES hides all"


def test_an_older_driver_of_the_same_cuda_will_do(machine: Machine) -> None:
    machine.has(2, cuda="12.6", driver=(Path("/"),), supports=12020)
    assert find_devices("auto", count="auto") == Devices("cuda", count=2)


def test_what_a_stage_says(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*given: Any, **how: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(given, 0, stdout="NVIDIA H100 80GB HBM3\n" * 8)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    machine.has(0)
    on_cpu = find_devices("auto", count="auto")
    reason = "no GPU is seen: torch is built for CPUs alone"
    assert on_cpu.describe(precision="auto") == f"runs on the CPU, 2 threads, 32-true; {reason}"
    assert on_cpu.describe(processes=3) == f"runs on the CPU, 3 processes; {reason}"
    assert find_devices("cpu", count=2).describe() == "runs on the CPU, 2 processes"
    machine.has(8, cuda="13.0")
    monkeypatch.setattr(module.subprocess, "run", run)
    one, all_of_them = Devices("cuda"), find_devices("auto", count="auto")
    assert one.describe(precision="auto") == "runs on cuda:0, 1 of 8 NVIDIA H100 80GB HBM3, bf16-mixed"
    assert all_of_them.describe(precision="32-true", nodes=2) == (
        "runs on cuda:0 to cuda:7, 8 of 8 NVIDIA H100 80GB HBM3, on each of 2 machines, 32-true"
    )
    assert Devices("cuda", 3).describe(processes=2) == "runs on cuda:3, 1 of 8 NVIDIA H100 80GB HBM3, 2 processes"


@pytest.mark.parametrize(
    ("gpus", "visible", "taken"),
    [(2, None, ["0", "1", "0"]), (2, "5,7", ["5", "7", "5"]), (3, None, ["0", "1", "2"]), (1, None, [None] * 3)],
)
def test_workers_take_gpus_in_turn(
    monkeypatch: pytest.MonkeyPatch, gpus: int, visible: str | None, taken: list[str | None]
) -> None:
    started = multiprocessing.get_context("spawn").Value("i", 0)
    for expected in taken:
        # Each in its own environment, as processes are.
        with monkeypatch.context() as worker:
            worker.delenv("CUDA_VISIBLE_DEVICES", raising=False)
            if visible is not None:
                worker.setenv("CUDA_VISIBLE_DEVICES", visible)
            take_gpu(gpus, started)
            assert os.environ.get("CUDA_VISIBLE_DEVICES") == (expected if gpus > 1 else visible)


def test_tasks_are_dealt_out_to_gpus(machine: Machine) -> None:
    both = Devices("cuda", count=2)
    assert (both.processes(0), both.processes(3), Devices("cuda", 1).processes(0)) == (2, 3, 1)
    seen = run_on(EngineConfig(), os.getenv, ["CUDA_VISIBLE_DEVICES"] * 4, 0, devices=both)
    assert {value for _, value in seen} <= {"0", "1"}


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
    "evaluate": ["--scenarios", "s", "--rollouts", "r", "--device"],
    "sumo": ["--policy", "p", "--device"],
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


def device_of(config: Any) -> dict[str, Any]:
    """All options that say where, by dotted name."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= {f"{field.name}.{name}": one for name, one in device_of(value).items()}
        elif field.name in ("device", "devices"):
            found[field.name] = value
    return found


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_device_is_found_by_itself(name: str) -> None:
    assert set(device_of(COMMANDS[name].load()[1]()).values()) == {"auto"}


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("stages", "selfplay.device"),
        ("planners", "selfplay.device"),
        ("claims", "selfplay.device"),
        ("pretrain", "fit.device"),
    ],
)
def test_one_option_for_all_parts(
    name: str, option: str, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def function(config: Any, **own: Any) -> dict[str, Any]:
        seen.append(device_of(config))
        return {}

    real, config = COMMANDS[name].load()
    function.__signature__ = inspect.signature(real)  # type: ignore[attr-defined]
    function.__doc__ = real.__doc__
    monkeypatch.setattr(cli.Command, "load", lambda self: (function, config))
    monkeypatch.setattr(
        cli, "load", lambda name: lambda command, function, config, own, **asked: function(config, **own)
    )
    place = [] if name == "stages" else ["--out", str(tmp_path / "out")]
    given = [name, *ARGUMENTS[name][:-1], *place, "--device", "cpu", "--devices", "1"]
    assert main(given) == 0
    assert set(seen[-1].values()) == {"cpu", 1}
    assert main([*given, f"--{option}", "cuda"]) == 0
    assert seen[-1].pop(option) == "cuda"
    assert set(seen[-1].values()) <= {"cpu", 1}


def test_devices_that_are_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stages", "--devices", "many"]) == 1
    assert capsys.readouterr().err == "error: --devices many: expected a number or auto\n"


def test_presets_are_checked_too(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.command.cli.load_preset", lambda name: {"pretrain": {"fit": {"device": "cuda"}}})
    assert main(["pretrain", *ARGUMENTS["pretrain"][:-1], "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: --fit.device cuda: there is none here")
    assert main(["stages", "--folder", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: --pretrain.fit.device cuda: there is none here")

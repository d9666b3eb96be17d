"""The examples for clusters: commands that exist, with options that exist."""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pipeline.command import cli
from pipeline.run.presets import PRESETS, load_preset

# Version of its schemas, the newest that the package has at the time of writing.
KUBERNETES = "1.37"
DEPLOY = Path(__file__).parents[3] / "deploy"


def options_of(command: str) -> list[str]:
    return shlex.split(command.split("-m pipeline ", 1)[1])


Build = Callable[[list[str]], Any]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Build:
    """Calls the command line up to the command's function, and returns the configuration that it was given."""
    given: list[Any] = []
    load = cli.Command.load

    def loaded(command: cli.Command) -> tuple[Callable[..., dict[str, Any]], type[Any]]:
        real, config_class = load(command)

        @functools.wraps(real)
        def function(config: Any, **own: Any) -> dict[str, Any]:
            given.append((config, own))
            return {}

        return function, config_class

    def alone(command: Any, function: Any, config: Any, own: dict[str, Any], **asked: bool) -> dict[str, Any]:
        result: dict[str, Any] = function(config, **own)
        return result

    def built(arguments: list[str]) -> Any:
        assert cli.main(arguments) == 0
        return given[-1]

    monkeypatch.setattr(cli.Command, "load", loaded)
    monkeypatch.setattr(cli, "load", lambda name: alone)
    return built


def of_slurm(tasks: int, nodes: int, **environment: str) -> list[str]:
    """What the script gives to srun."""
    show = """srun() { printf '%s\\n' "$@"; }; source "$0" """
    done = subprocess.run(
        ["bash", "-c", show, DEPLOY / "slurm.sbatch"],
        env={**os.environ, "SLURM_NTASKS_PER_NODE": str(tasks), "SLURM_NNODES": str(nodes), **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    program, *arguments = done.stdout.splitlines()
    assert (program, arguments[:2]) == (".venv/bin/python", ["-m", "pipeline"])
    return arguments[2:]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("tasks", "nodes"), [(8, 2), (8, 1), (1, 1), (6, 3)])
def test_slurm(build: Build, preset: str, tasks: int, nodes: int) -> None:
    config, own = build(of_slurm(tasks, nodes, PRESET=preset))
    assert (config.device, config.devices, config.nodes) == ("cuda", tasks, nodes)
    assert own["reference"] == Path(f"runs/{preset}/finetune/reference.ckpt")
    # As the processes that Slurm starts do.
    config.check_share(tasks)


def test_slurm_asks_for_as_many_cores_as_the_preset_uses(build: Build) -> None:
    script = (DEPLOY / "slurm.sbatch").read_text()
    (cores,) = re.findall(r"--cpus-per-task=(\d+)", script)
    (tasks,) = re.findall(r"--ntasks-per-node=(\d+)", script)
    (nodes,) = re.findall(r"--nodes=(\d+)", script)
    config, _ = build(of_slurm(int(tasks), int(nodes)))
    assert config.workers < int(cores)
    assert config.worlds == load_preset("node")["selfplay"]["worlds"]


def check_pod_template(template: dict) -> None:
    """By the schema of Kubernetes, in which unknown fields are errors. KubeRay's own is in no package."""
    resource = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
    kubernetes_validate.validate(resource, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    "spoilt",
    [
        {"spec": {"containers": [{"name": "ray", "image": "x", "volumeMount": []}]}},
        {"spec": {"containers": [{"image": "x"}]}},
        {"spec": {"containers": [{"name": "ray", "resources": {"limits": ["cpu"]}}]}},
    ],
)
def test_the_schema_refuses_what_kubernetes_would(spoilt: dict) -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        check_pod_template(spoilt)


@pytest.mark.parametrize("preset", PRESETS)
def test_kuberay(build: Build, preset: str) -> None:
    job = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    given = options_of(job["spec"]["entrypoint"])
    given[given.index("--preset") + 1] = preset
    _, own = build(given)
    assert (own["engine"].kind, own["engine"].address, str(own["folder"])) == ("ray", "auto", "/shared/runs")
    cluster = job["spec"]["rayClusterSpec"]
    # The version of Ray in the image must be that of the cluster.
    pins = (DEPLOY.parent / "requirements-ray.txt").read_text().splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        check_pod_template(group["template"])
        (container,) = group["template"]["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {"shared"}

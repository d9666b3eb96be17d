"""The examples for clusters: commands that exist, with options that exist."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import yaml

from pipeline.cli import whole_run
from pipeline.options import command_parser, load_preset, pop_option
from pipeline.run_config import RunConfig
from pipeline.runner import run_stages
from pipeline.stages.selfplay import SelfPlayConfig, run_selfplay

DEPLOY = Path(__file__).parents[2] / "deploy"


def options_of(command: str) -> list[str]:
    return shlex.split(command.split("-m pipeline ", 1)[1])[1:]


def test_slurm() -> None:
    script = DEPLOY / "slurm.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    text = (
        script.read_text().replace("\\\n", " ").replace("$SLURM_NTASKS_PER_NODE", "8").replace("$SLURM_NNODES", "2")
    )
    (command,) = [line for line in text.splitlines() if line.startswith("srun")]
    given = options_of(command)
    preset = load_preset(pop_option(given, "preset", ""))
    parser = command_parser("selfplay", run_selfplay, SelfPlayConfig, preset["selfplay"], "")
    parsed = parser.parse_args(given)
    assert (parsed.device, parsed.devices, parsed.nodes) == ("cuda", 8, 2)


def test_kuberay() -> None:
    job = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    given = options_of(job["spec"]["entrypoint"])
    preset = load_preset(pop_option(given, "preset", ""))
    parsed = command_parser("stages", run_stages, RunConfig, whole_run(preset, RunConfig), "").parse_args(given)
    assert (parsed.engine.kind, parsed.engine.address, str(parsed.folder)) == ("ray", "auto", "/shared/runs")
    cluster = job["spec"]["rayClusterSpec"]
    # The version of Ray in the image must be that of the cluster.
    pins = (DEPLOY.parent / "requirements-ray.txt").read_text().splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {"shared"}

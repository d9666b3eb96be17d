"""The examples for clusters: commands that exist, with options that exist."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from pipeline.command.cli import whole_run
from pipeline.command.options import command_parser, pop_option
from pipeline.run.presets import load_preset
from pipeline.run.run_config import RunConfig
from pipeline.run.runner import run_stages
from pipeline.stages.selfplay import SelfPlayConfig, run_selfplay

# Version of its schemas, the newest that the package has at the time of writing.
KUBERNETES = "1.37"
DEPLOY = Path(__file__).parents[3] / "deploy"


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
        check_pod_template(group["template"])
        (container,) = group["template"]["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {"shared"}

"""Stages on a real Ray cluster of several nodes, some of which are killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from data.tfrecord import write_records
from data.vocabulary import VocabularyConfig
from pipeline.execution import ray_cluster
from pipeline.execution.engine import EngineConfig, run_on
from pipeline.stages.evaluate import EvaluateConfig, run_evaluate
from pipeline.stages.package import PackageConfig, run_package
from pipeline.stages.sample import SampleConfig, run_sample
from pipeline.stages.tokenize import TokenizeConfig, run_tokenize
from tests.builders import scenario_proto

EXAMPLE = Path(__file__).parents[3] / "submission" / "metadata.example.yaml"
SCENES = 40
MEMORY = 100 * 2**20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": MEMORY}
    made = Cluster(initialize_head=True, head_node_args=options)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def ray_engine(cluster: Any) -> EngineConfig:
    return EngineConfig("ray", cluster.address)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    records = [scenario_proto(f"{index:016x}", agents=3).SerializeToString() for index in range(SCENES)]
    for shard in range(4):
        write_records(folder / f"validation.tfrecord-{shard:05d}-of-00004", records[shard::4])
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


SAMPLE = partial(SampleConfig, agent="constant_velocity", shard_scenarios=1)


def run(stage: str, inputs: Path, out: Path, data: Path, engine: EngineConfig) -> None:
    """A stage on the outputs of the stages before it, which are in ``inputs``."""
    if stage == "store":
        tokenize = TokenizeConfig(workers=1, vocabulary=VocabularyConfig(max_segments=1000))
        run_tokenize(tokenize, data=str(data), split="validation", out=out / "store", engine=engine)
    elif stage == "scores":
        run_evaluate(
            EvaluateConfig(workers=1),
            scenarios=inputs / "store",
            rollouts=inputs / "rollouts",
            out=out / "scores",
            show=False,
            engine=engine,
        )
    else:
        run_package(
            PackageConfig(workers=1, shard_mb=1),
            rollouts=inputs / "rollouts",
            scenarios=inputs / "store",
            metadata=EXAMPLE,
            out=out / "package" / "submission.tar.gz",
            engine=engine,
        )


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What processes of one machine write."""
    folder = tmp_path_factory.mktemp("alone")
    run_sample(SAMPLE(workers=1), scenarios=data, out=folder / "rollouts")
    for stage in ("store", "scores", "package"):
        run(stage, folder, folder, data, EngineConfig())
    return folder


@pytest.mark.parametrize("stage", ["store", "scores", "package"])
def test_a_cluster_writes_the_same_bytes(
    stage: str, ray_engine: EngineConfig, alone: Path, data: Path, tmp_path: Path
) -> None:
    run(stage, alone, tmp_path, data, ray_engine)
    assert content(tmp_path / stage) == content(alone / stage)


def test_a_node_is_killed_while_it_samples(
    cluster: Any, ray_engine: EngineConfig, alone: Path, data: Path, tmp_path: Path
) -> None:
    doomed = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    left_at_death: list[int] = []

    def kill_when_shards_come() -> None:
        while not any(tmp_path.glob("*-of-*")):
            time.sleep(0.02)
        cluster.remove_node(doomed, allow_graceful=False)
        left_at_death.append(SCENES - len(list(tmp_path.glob("*-of-*"))))

    killer = threading.Thread(target=kill_when_shards_come)
    killer.start()
    run_sample(SAMPLE(), scenarios=data, out=tmp_path, engine=ray_engine)
    killer.join()
    assert left_at_death[0] > 0
    assert content(tmp_path) == content(alone / "rollouts")


def die_once(marker: Path) -> int:
    """Kills the process it is in, the first time that it is asked."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return os.getpid()
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def die(task: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return task


def refuse(task: int) -> int:
    raise UserError(f"task {task} is not to be done")


def test_the_task_of_a_dead_worker_is_done_by_another(ray_engine: EngineConfig, tmp_path: Path) -> None:
    markers = [tmp_path / str(index) for index in range(3)]
    done = dict(run_on(ray_engine, die_once, markers, 1))
    assert sorted(done) == [0, 1, 2]
    assert all(done.values())


def test_a_task_that_kills_its_workers_is_given_up(ray_engine: EngineConfig) -> None:
    engine = EngineConfig("ray", ray_engine.address, retries=1)
    with pytest.raises(UserError, match="task 0: 2 workers died over it"):
        list(run_on(engine, die, [7], 1))


def test_errors_arrive_as_they_were(ray_engine: EngineConfig) -> None:
    with pytest.raises(UserError, match=r"^task 5 is not to be done$"):
        list(run_on(ray_engine, refuse, [5], 1))


def test_a_folder_that_a_machine_does_not_see(
    ray_engine: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave = ray_cluster._leave_token

    def leave_elsewhere(folder: Path | None) -> Path | None:
        token = leave(folder)
        assert token is not None
        token.unlink()
        return token

    monkeypatch.setattr(ray_cluster, "_leave_token", leave_elsewhere)
    with pytest.raises(UserError, match=r"/out: machine .* of the cluster does not see this folder"):
        list(run_on(ray_engine, refuse, [5], 1, folder=tmp_path / "out"))


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "127.0.0.1:port"])
def test_no_cluster_there(address: str) -> None:
    with pytest.raises(UserError, match=f"--engine\\.address {address}: no Ray cluster answers there"):
        list(run_on(EngineConfig("ray", address), refuse, [5], 1))


def test_options_are_checked() -> None:
    with pytest.raises(UserError, match=r"--engine\.kind spark: expected one of local, ray"):
        EngineConfig("spark")
    with pytest.raises(UserError, match=r"--engine\.address auto: only a Ray cluster has one"):
        EngineConfig(address="auto")
    with pytest.raises(UserError, match=r"--engine\.retries -1"):
        EngineConfig(retries=-1)

"""Everything that reads files from outside, as functions of bytes that end in one of the documented ways.

A file that is no good ends in ``UserError`` (``RecordError`` for a record); any other exception is our defect.
"""

from __future__ import annotations

import contextlib
import gzip
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

from data.assembly import RecordError
from data.completeness import Remarks
from data.errors import UserError
from data.formats.catalogue import FORMATS
from data.formats.reader import Reading
from data.receipts import accepted, receipt_path
from data.scene import Scene
from data.scene_codec import encode_row
from data.scenes_source import SceneSource
from data.store import SceneStore, shard_name
from data.tfrecord import read_records
from data.tokenizer import scene_origin
from data.vocabulary import Vocabulary
from data.womd import parse_scenario
from models.policy import load_policy
from models.reference.agent import ReferenceAgent
from pipeline.command.options import command_parser
from pipeline.execution.manifest import read_manifest
from pipeline.stages.package import PackageConfig, run_package
from submission.checks import examine
from submission.metadata import load_metadata
from submission.protos import parse_rollouts, read_rollouts
from submission.validate import validate_archive
from tests.builders import scenario_proto

__all__ = ["READERS", "Reader"]

# What readers may raise of a bad file is forgiven by this; a test of good files replaces it.
forgive = contextlib.suppress
# From the content of a file, and an empty folder for it.
Reader = Callable[[bytes, Path], None]


def _file(data: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tfrecord(data: bytes, folder: Path) -> None:
    for _ in read_records(_file(data, folder, "x.tfrecord")):
        pass


def scenario(data: bytes, folder: Path) -> None:
    with forgive(RecordError):
        scene = parse_scenario(data)
        encode_row(scene)
        scene_origin(scene)


def _recording(name: str, data: bytes, folder: Path) -> None:
    """A file of one recording: each of its items is a scene or a reason."""
    for _, result in FORMATS[name].read(str(_file(data, folder, "x")), Reading(), Remarks()):
        with forgive(RecordError):
            if isinstance(result, RecordError):
                raise result
            encode_row(result)
            scene_origin(result)


def scenarionet(data: bytes, folder: Path) -> None:
    _recording("scenarionet", data, folder)


def gpudrive(data: bytes, folder: Path) -> None:
    _recording("gpudrive", data, folder)


def store(data: bytes, folder: Path) -> None:
    _file(data, folder, shard_name("testing", 0, 1))
    with forgive(UserError):
        for scene in SceneStore(folder):
            scene.simulated.any()


def rollouts(data: bytes, folder: Path) -> None:
    with forgive(UserError):
        for _ in read_rollouts(_file(data, folder, "x.binproto")):
            pass


@cache
def _scene() -> Scene:
    return parse_scenario(scenario_proto("0" * 16, steps=11, agents=2).SerializeToString())


def message(data: bytes, folder: Path) -> None:
    with forgive(UserError):
        examine(parse_rollouts(data, "x"), _scene())


def metadata(data: bytes, folder: Path) -> None:
    with forgive(UserError):
        load_metadata(_file(data, folder, "metadata.yaml"))


def config(data: bytes, folder: Path) -> None:
    path = _file(data, folder, "config.yaml")
    parser = command_parser("package", run_package, PackageConfig, {}, "")
    given = ["--rollouts", "r", "--scenarios", "s", "--metadata", "m", "--out", "o", "--config", str(path)]
    # The parser ends the process, behind one line on stderr.
    with forgive(UserError, SystemExit), contextlib.redirect_stderr(io.StringIO()) as said:
        parser.instantiate(parser.parse_args(given))
    assert said.getvalue().count("\n") <= 1


def vocabulary(data: bytes, folder: Path) -> None:
    with forgive(UserError):
        Vocabulary.load(_file(data, folder, "vocabulary.pt"))


def policy(data: bytes, folder: Path) -> None:
    with forgive(UserError):
        load_policy(_file(data, folder, "policy.ckpt"))


def reference(data: bytes, folder: Path) -> None:
    with forgive(UserError):
        ReferenceAgent.from_checkpoint(_file(data, folder, "reference.ckpt"))


def bookkeeping(data: bytes, folder: Path) -> None:
    """Manifests and receipts: what is no good counts as not there."""
    _file(data, folder, "manifest.json")
    read_manifest(folder)
    path = _file(b"content", folder, "shard")
    _file(data, folder, str(receipt_path(path).relative_to(folder)))
    accepted(path, "source")


class _OneScene:
    """A set of a single scenario."""

    ids = ("0" * 16,)

    def get(self, name: str) -> Scene:
        return _scene()


def archive(data: bytes, folder: Path) -> None:
    """Bytes of the file, and bytes inside intact gzip, which a change would damage otherwise."""
    source: SceneSource = _OneScene()  # type: ignore[assignment]
    for content in (data, gzip.compress(data, 1)):
        validate_archive(_file(content, folder, "x.tar.gz"), source, lambda count: None)


READERS: dict[str, Reader] = {
    reader.__name__: reader
    for reader in (
        tfrecord,
        scenario,
        scenarionet,
        gpudrive,
        store,
        rollouts,
        message,
        metadata,
        config,
        vocabulary,
        policy,
        reference,
        bookkeeping,
        archive,
    )
}

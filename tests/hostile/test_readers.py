"""Spoilt files of every kind end in a verdict; nothing in a file runs, and nothing is written beside it."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import UserError
from data.vocabulary import Vocabulary
from models.policy import load_policy
from models.reference.agent import ReferenceAgent
from tests.hostile import readers
from tests.hostile.readers import READERS
from tests.hostile.seeds import make_seeds

SEEDS = Path(__file__).parent / "seeds"
# Crashes that longer runs (scripts/checks/fuzz.py) found, one file each: READER-NUMBER.
FOUND = Path(__file__).parent / "found"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return make_seeds(tmp_path_factory.mktemp("seeds"))


def test_there_is_a_seed_for_every_reader(seeds: dict[str, bytes]) -> None:
    assert seeds.keys() == READERS.keys()
    assert {path.name for path in SEEDS.iterdir()} == READERS.keys()


@pytest.mark.parametrize("name", READERS)
def test_seeds_are_good_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers here forgive errors, and none is forgiven of a good file."""
    monkeypatch.setattr(readers, "forgive", lambda *errors: contextlib.nullcontext())
    READERS[name]((SEEDS / name).read_bytes(), tmp_path)


def spoil(data: st.DataObject, good: bytes) -> bytes:
    """Cut, changed, repeated or replaced pieces."""
    content = bytearray(good)
    generator = random.Random(data.draw(st.integers(0, 2**32), label="seed"))
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(len(content) + 1)
        kind = generator.randrange(5)
        if kind == 0:
            del content[place:]
        elif kind == 1 and place < len(content):
            content[place] = generator.randrange(256)
        elif kind == 2:
            content[place:place] = generator.randbytes(generator.randint(1, 9))
        elif kind == 3:
            other = generator.randrange(len(content) + 1)
            content[place:place] = content[other : other + generator.randint(1, 64)]
        else:
            del content[place : place + generator.randint(1, 16)]
    return bytes(content)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_content_ends_in_a_verdict(name: str, tmp_path: Path, data: st.DataObject) -> None:
    good = (SEEDS / name).read_bytes()
    spoilt = data.draw(st.binary(max_size=80), label="junk") if data.draw(st.booleans()) else spoil(data, good)
    READERS[name](spoilt, tmp_path)


@pytest.mark.parametrize("path", sorted(FOUND.iterdir()) if FOUND.is_dir() else [], ids=lambda path: path.name)
def test_what_was_found_stays_mended(path: Path, tmp_path: Path) -> None:
    READERS[path.name.rsplit("-", 1)[0]](path.read_bytes(), tmp_path)


class _Harmful:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("load", [Vocabulary.load, load_policy, ReferenceAgent.from_checkpoint])
@pytest.mark.parametrize("way", ["pickle", "torch"])
def test_pickles_do_not_run(load: object, way: str, tmp_path: Path) -> None:
    assert callable(load)
    path, done = tmp_path / "x.ckpt", tmp_path / "done"
    content = {"kind": "policy", "format": 1, "weights": _Harmful(done)}
    if way == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(UserError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert not done.exists()


def test_configurations_build_no_objects(tmp_path: Path) -> None:
    done = tmp_path / "done"
    READERS["config"](f"shard_mb: !!python/object/apply:os.mkdir ['{done}']\n".encode(), tmp_path)
    assert not done.exists()

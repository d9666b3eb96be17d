"""The worlds of a pool in one file beside its store, so that only the first training builds them.

The file is named by all that decides what is in it, the code that builds worlds included. There is one for a store:
worlds of another pool, view or version replace it. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

from data.files import atomic_write
from data.places import is_remote
from data.receipts import SUMS
from data.road import Segments
from data.road_grid import RoadLists
from data.store import SceneStore
from data.vocabulary import LOAD_ERRORS, Vocabulary, load_saved
from pipeline.execution.console import say
from pipeline.execution.result_cache import code_version
from pipeline.simulator.world import World

FOLDER = ".worlds"


def packed_worlds(
    store: SceneStore, rows: Sequence[int], vocabulary: Vocabulary, view_size: int, build: Callable[[], World]
) -> World:
    """The worlds of some scenes as a batch, read if they were built before.

    Args:
        store: of the scenes. rows: of the store. vocabulary: of the tokens. view_size: road segments that agents
            see. build: makes the batch, which is then saved where the store can be written.
    """
    if is_remote(store.folder) or not (store.folder / SUMS).is_file():
        # Nothing says whether such a store is still the same.
        return build()
    path = store.folder / FOLDER / f"{_key(store, rows, vocabulary, view_size)}.pt"
    if path.is_file():
        try:
            with torch.serialization.safe_globals([World, Segments, RoadLists]):
                found = load_saved(path)
            if isinstance(found, World):
                return found
        except LOAD_ERRORS:
            say(f"{path}: damaged; the worlds are built again")
    whole = build()
    try:
        path.parent.mkdir(exist_ok=True)
        # Half-written ones of killed processes, too.
        for other in path.parent.glob("*"):
            other.unlink(missing_ok=True)
        atomic_write(path, lambda file: torch.save(whole, file))
    except OSError as error:
        say(f"{path.parent}: built worlds are not kept ({error.strerror or error})")
    return whole


def _key(store: SceneStore, rows: Sequence[int], vocabulary: Vocabulary, view_size: int) -> str:
    digest = hashlib.sha256((store.folder / SUMS).read_bytes())
    digest.update(code_version("pipeline.simulator.world").encode())
    digest.update(vocabulary.poses.numpy().tobytes())
    digest.update(vocabulary.box.numpy().tobytes())
    digest.update(repr((list(rows), view_size)).encode())
    return digest.hexdigest()[:24]

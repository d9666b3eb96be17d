"""Batches of training: the order of scenes, and going on in it."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from pipeline.fitting.batches import SizeBatchSampler


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 5))
def test_sampler_covers_each_epoch_and_resumes(sizes: list[int], batch_size: int, seed: int) -> None:
    epoch = -(-len(sizes) // batch_size)
    whole = list(islice(SizeBatchSampler(sizes, batch_size, seed), 2 * epoch))
    for start in (0, epoch):
        indices = sorted(i for batch in whole[start : start + epoch] for i in batch)
        assert indices == list(range(len(sizes)))
    resumed = islice(SizeBatchSampler(sizes, batch_size, seed, start=epoch // 2), 2 * epoch - epoch // 2)
    assert list(resumed) == whole[epoch // 2 :]

"""The cache against a plain list of everything that was written."""

from __future__ import annotations

import pytest
import torch

from models.reference.decoder import MapView
from models.reference.kv_cache import KVCache

LAYERS, ROWS, AGENTS, HEADS, SLOTS, WIDTH = 2, 3, 4, 2, 5, 6
OFFSET = torch.tensor([1, 2, 5])


def filled(boundaries: int) -> tuple[KVCache, list[torch.Tensor], list[torch.Tensor], list[list[torch.Tensor]]]:
    """A cache after some boundaries, and the poses, presences and keys and values [layer][boundary] written."""
    torch.manual_seed(0)
    cache = KVCache.empty(torch.zeros(WIDTH), LAYERS, ROWS, AGENTS, HEADS, SLOTS)
    poses, presences = [], []
    written: list[list[torch.Tensor]] = [[] for _ in range(LAYERS)]
    for number in range(boundaries):
        boundary = torch.tensor([number])
        for layer in range(LAYERS):
            written[layer].append(torch.randn(2, ROWS, AGENTS, HEADS, 1, WIDTH // HEADS))
            cache.write_layer(boundary, layer, written[layer][-1])
        poses.append(torch.randn(ROWS, AGENTS, 3))
        presences.append(torch.rand(ROWS, AGENTS) < 0.5)
        cache.write_state(boundary, poses[-1], presences[-1])
    return cache, poses, presences, written


@pytest.mark.parametrize("boundaries", [0, 1, 3, 5, 6, 17])
def test_earlier_boundaries_are_found(boundaries):
    cache, poses, presences, written = filled(boundaries)
    slot, exists = cache.lookup(torch.tensor([boundaries]), OFFSET)
    assert slot.shape == exists.shape == (1, len(OFFSET))
    assert exists[0].tolist() == [boundaries >= offset for offset in OFFSET.tolist()]
    for place, offset, there in zip(slot[0].tolist(), OFFSET.tolist(), exists[0].tolist(), strict=True):
        if there:
            torch.testing.assert_close(cache.pose[:, :, place], poses[boundaries - offset], atol=0, rtol=0)
            assert (cache.present[:, :, place] == presences[boundaries - offset]).all()
            for layer in range(LAYERS):
                stored = cache.keys_values[layer][..., place, :]
                assert (stored == written[layer][boundaries - offset][..., 0, :]).all()
    if boundaries:
        assert (cache.pose_before(boundaries) == poses[-1]).all()


def test_copies_of_a_row_follow_one_another_and_are_their_own():
    cache, poses, _, _ = filled(2)
    view = MapView(
        torch.randn(ROWS, AGENTS, 1, 7, 3), torch.randn(ROWS, AGENTS, 1, 7), torch.ones(ROWS, AGENTS, 1, 7)
    )
    cache.set_map(view, [torch.randn(2, ROWS, AGENTS, 1, HEADS, 7, WIDTH // HEADS) for _ in range(LAYERS)])
    copies = cache.repeat(2)
    assert copies.view is not None
    for row in range(2 * ROWS):
        assert (copies.pose[row] == cache.pose[row // 2]).all()
        assert (copies.view.pose[row] == view.pose[row // 2]).all()
        for layer in range(LAYERS):
            assert (copies.keys_values[layer][:, row] == cache.keys_values[layer][:, row // 2]).all()
            assert (copies.map_keys_values[layer][:, row] == cache.map_keys_values[layer][:, row // 2]).all()
    copies.write_state(torch.tensor([1]), torch.zeros(2 * ROWS, AGENTS, 3), torch.ones(2 * ROWS, AGENTS).bool())
    assert (cache.pose[:, :, 1] == poses[1]).all()


def test_a_cache_without_a_map_is_repeated_without_one():
    assert filled(1)[0].repeat(3).view is None

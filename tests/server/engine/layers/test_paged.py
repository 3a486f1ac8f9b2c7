"""How our own attention on CUDA is launched. The kernels are tested in tests/triton."""

from __future__ import annotations

import pytest

from polyhead.server.engine.layers.cuda.paged import FEWEST_KEYS, MOST_SPLITS, Launch, power_of_two

H200 = 132  # multiprocessors


def splits(num_sequences: int, most_keys: int) -> int:
    return Launch.of(num_sequences, 1, most_keys, 8, 4, 128, H200).num_splits


@pytest.mark.parametrize(
    ("num_sequences", "most_keys", "num_splits"), [(1, 4096, 32), (1, 255, 1), (1, 600, 4), (8, 4096, 8), (64, 4096, 1), (256, 128, 1)]
)
def test_keys_are_split_until_the_gpu_is_full(num_sequences: int, most_keys: int, num_splits: int) -> None:
    assert splits(num_sequences, most_keys) == num_splits <= MOST_SPLITS
    assert num_splits == 1 or most_keys >= num_splits * FEWEST_KEYS


def test_a_prefill_is_tiled_and_not_split() -> None:
    """A tile of 64 holds 16 queries with a group of four."""
    launch = Launch.of(3, 100, 4096, 8, 4, 128, H200)
    assert (launch.tile, launch.num_tiles, launch.num_splits) == (64, 7, 1)


@pytest.mark.parametrize(("group", "tile"), [(1, 16), (7, 16), (16, 16), (17, 32)])
def test_a_decode_step_is_one_tile(group: int, tile: int) -> None:
    launch = Launch.of(64, 1, 4096, 8, group, 128, H200)
    assert (launch.tile, launch.num_tiles) == (tile, 1)


def test_large_heads_are_read_in_smaller_pieces() -> None:
    assert [Launch.of(1, 1, 4096, 8, 4, size, H200).keys for size in (64, 80, 128, 192, 256)] == [64, 64, 64, 32, 32]
    assert [power_of_two(size) for size in (1, 16, 17, 80, 256)] == [16, 16, 32, 128, 256]

"""Histories that begin alike share entries; the bound holds; a beginning never leaves before what goes on from it."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.prefix_cache import PrefixCache

BYTES = 2 * 2 * 3 * 4
"""Of one segment of one token: two layers, keys and values, one head of width three, float32."""


def rows(*items: int) -> np.ndarray:
    return np.array(items, np.int64)


def keys(*items: int) -> list[Tensor]:
    return [torch.full((2, 2, 1, 1, 3), float(item)) for item in items]


def found(cache: PrefixCache, *items: int) -> list[float]:
    return [float(segment.mean()) for segment in cache.longest(rows(*items))]


def test_a_history_that_goes_on_finds_what_it_shares_with_the_one_before() -> None:
    cache = PrefixCache(10 * BYTES)
    cache.keep(rows(1, 2, 3), keys(1, 2, 3))
    assert found(cache, 1, 2, 3, 4) == [1, 2, 3]
    assert found(cache, 1, 2, 9) == [1, 2]
    assert cache.num_known(rows(1, 2, 9)) == 2


def test_the_same_item_after_another_beginning_is_not_the_same() -> None:
    cache = PrefixCache(10 * BYTES)
    cache.keep(rows(1, 2), keys(1, 2))
    assert found(cache, 2) == []
    assert found(cache, 2, 1) == []


def test_what_is_shared_is_held_once() -> None:
    cache = PrefixCache(10 * BYTES)
    cache.keep(rows(1, 2), keys(1, 2))
    cache.keep(rows(1, 2, 3), keys(1, 2, 3))
    assert cache.num_bytes == 3 * BYTES


def test_entries_do_not_hold_the_batch_that_they_were_cut_from() -> None:
    batch = torch.zeros(2, 2, 100, 1, 3)
    cache = PrefixCache(10 * BYTES)
    cache.keep(rows(1), [batch[:, :, :1]])
    assert cache.longest(rows(1))[0].untyped_storage().nbytes() == BYTES


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=12))
def test_an_entry_is_never_held_without_its_beginning_and_the_bound_holds(histories: list[list[int]]) -> None:
    cache = PrefixCache(5 * BYTES)
    for history in histories:
        cache.longest(rows(*history))
        cache.keep(rows(*history), keys(*history))
        assert cache.num_bytes <= 5 * BYTES
    held = sum(1 for _ in cache._entries._entries)
    beginnings = {tuple(h[: n + 1]) for h in histories for n in range(len(h))}
    assert held == sum(cache.num_known(rows(*b)) == len(b) for b in beginnings)

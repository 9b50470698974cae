"""Intervals over users, worked out where they can be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from offline.bootstrap import difference, fifths
from offline.metrics import gains, ndcg_at


def test_gains_average_to_ndcg() -> None:
    ranks = np.array([1, 2, 10, 11, 500])
    assert gains(ranks, 10).mean() == pytest.approx(ndcg_at(ranks, 10))


def test_a_constant_difference_has_no_spread() -> None:
    interval = difference(np.full(30, 0.75), np.full(30, 0.5), np.repeat(np.arange(10), 3))
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.25, 0.25, 0.25))
    assert interval.is_above_zero


def test_events_of_one_user_are_one_piece_of_evidence() -> None:
    """The same differences spread over many users are surer than those of a few who repeat themselves."""
    generator = np.random.default_rng(0)
    gain = generator.normal(size=50)
    alone = difference(gain, np.zeros(50), np.arange(50))
    repeated = difference(np.repeat(gain, 20), np.zeros(1000), np.repeat(np.arange(50), 20))
    independent = difference(np.repeat(gain, 20), np.zeros(1000), np.arange(1000))
    assert repeated.high - repeated.low == pytest.approx(alone.high - alone.low, rel=0.05)
    assert independent.high - independent.low < 0.3 * (alone.high - alone.low)


def test_the_interval_is_that_of_the_normal_limit() -> None:
    gain = np.random.default_rng(1).normal(0.1, 1, 4000)
    interval = difference(gain, np.zeros(4000), np.arange(4000))
    half = 1.96 * gain.std() / 4000**0.5
    assert (interval.low, interval.high) == pytest.approx((gain.mean() - half, gain.mean() + half), abs=0.003)


def test_fifths_cover_all_and_keep_equal_values_together() -> None:
    values = np.array([1, 1, 1, 2, 3, 4, 5, 6, 7, 8])
    groups = fifths(values)
    assert sum(group.astype(int) for group in groups).tolist() == [1] * 10
    assert groups[0].tolist() == [True] * 3 + [False] * 7
    assert all(values[a].max() < values[b].min() for a, b in itertools.pairwise(groups) if b.any())

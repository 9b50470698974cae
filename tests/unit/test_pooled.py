"""Pooled states are means over the newest items that have the feature."""

from __future__ import annotations

import numpy as np

from model.config import SIGNALS
from model.heads import ItemFeatures
from model.pooled import MAX_HISTORY, PooledStates, pad_histories

WIDTHS = {"image": 7, "cf": 3, "text": 5}


def features(num_items: int = 50) -> ItemFeatures:
    generator = np.random.default_rng(0)
    vectors = {s: generator.normal(size=(num_items, WIDTHS[s])).astype(np.float32) for s in SIGNALS}
    return ItemFeatures(vectors, {s: (generator.random(num_items) > 0.3).astype(np.uint8) for s in SIGNALS})


def by_hand(known: ItemFeatures, history: np.ndarray) -> np.ndarray:
    newest = history[-MAX_HISTORY:]
    parts = []
    for signal, rows in (*((s, newest) for s in SIGNALS), ("cf", newest[-1:])):
        having = [known.vectors[signal][row] for row in rows if known.origin[signal][row]]
        parts.append(np.mean(having, axis=0) if having else np.zeros(WIDTHS[signal]))
    return np.concatenate(parts)


def test_states_are_the_means_and_the_last_item_s_cf_feature_whatever_the_length() -> None:
    generator, known = np.random.default_rng(1), features()
    histories = [generator.integers(0, 50, num) for num in (0, 1, 4, 10, 14)]
    states = PooledStates(known, pad_histories(histories)).take(np.arange(5)).numpy()
    np.testing.assert_allclose(states, [by_hand(known, history) for history in histories], atol=1e-6)


def test_states_are_the_same_alone_and_among_others() -> None:
    states = PooledStates(features(), pad_histories([np.array([3, 4]), np.array([9])]))
    np.testing.assert_allclose(states.take(np.array([1])), states.take(np.array([0, 1]))[1:], atol=1e-6)

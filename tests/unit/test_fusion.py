"""Weights of the parts: those that made the choices are found again, and noise counts nothing."""

from __future__ import annotations

import numpy as np
import pytest

from model.config import PARTS, SIGNALS
from model.joined import Blocks, equal_weights, join
from offline.fusion import candidate_rows, fit_weights, places_among

NUM_USERS, NUM_ITEMS, WIDTH = 4000, 40, 5
TRUE = {("language_model", "image"): 0.5, ("pooled", "text"): 0.25, ("sasrec", "cf"): 1.5}


def drawn_blocks(num: int, seed: int) -> Blocks:
    generator = np.random.default_rng(seed)
    return {key: generator.normal(size=(num, WIDTH)).astype(np.float32) for key in TRUE}


def choices(users: Blocks, items: Blocks, seed: int = 2) -> np.ndarray:
    """Targets drawn from the softmax of the truly weighted sum (by Gumbel noise)."""
    score_UN = sum(weight * users[key] @ items[key].T for key, weight in TRUE.items())
    noise_UN = np.random.default_rng(seed).gumbel(size=score_UN.shape)
    return np.argmax(score_UN + noise_UN, axis=1)


def nothing_seen(num: int) -> list[np.ndarray]:
    return [np.empty(0, np.int64)] * num


def test_the_weights_that_made_the_choices_are_found() -> None:
    users, items = drawn_blocks(NUM_USERS, 0), drawn_blocks(NUM_ITEMS, 1)
    weights = fit_weights(users, items, choices(users, items), nothing_seen(NUM_USERS), PARTS)
    for (part, signal), true in TRUE.items():
        assert weights[part][signal] == pytest.approx(true, abs=0.06)  # standard error of 4,000 choices: 0.015


def test_a_part_that_says_the_opposite_counts_nothing() -> None:
    users, items = drawn_blocks(NUM_USERS, 0), drawn_blocks(NUM_ITEMS, 1)
    targets = choices(users, items)
    users["pooled", "text"] = -users["pooled", "text"]
    assert fit_weights(users, items, targets, nothing_seen(NUM_USERS), PARTS)["pooled"]["text"] == 0


def test_a_signal_that_is_switched_off_has_weight_zero() -> None:
    users, items = drawn_blocks(50, 0), drawn_blocks(NUM_ITEMS, 1)
    items["pooled", "text"][:] = 0
    assert fit_weights(users, items, choices(users, items), nothing_seen(50), PARTS)["pooled"]["text"] == 0


def test_only_the_parts_asked_for_are_weighted() -> None:
    users, items = drawn_blocks(50, 0), drawn_blocks(NUM_ITEMS, 1)
    found = fit_weights(users, items, choices(users, items), nothing_seen(50), ("pooled", "sasrec"))
    assert set(found) == {"pooled", "sasrec"}


def test_what_a_user_has_seen_is_no_rival_of_the_target() -> None:
    """The only part ranks one seen item above every target: with that item out of the way it deserves a weight."""
    users = {("sasrec", "cf"): np.ones((20, 1), np.float32)}
    items = {("sasrec", "cf"): np.array([[5.0], [1.0], [0.0]], np.float32)}
    targets = np.array([1] * 15 + [2] * 5)
    ignored = fit_weights(users, items, targets, [np.array([0])] * 20, ("sasrec",))
    counted = fit_weights(users, items, targets, nothing_seen(20), ("sasrec",))
    assert ignored["sasrec"]["cf"] == pytest.approx(np.log(3), abs=0.06)  # odds of 15 to 5, less the penalty
    assert counted["sasrec"]["cf"] == 0


def test_a_large_catalog_is_sampled_with_every_target_in_it() -> None:
    targets = np.array([3, 900, 3])
    rows = candidate_rows(1000, targets, 50)
    assert set(targets) <= set(rows)
    assert 50 <= len(rows) <= 52
    assert (np.diff(rows) > 0).all()
    assert rows[places_among(rows, np.array([900, 3, 1001]))].tolist() == [3, 900]
    assert candidate_rows(40, targets, 50).tolist() == list(range(40))


def test_one_inner_product_of_joined_vectors_is_the_weighted_sum_of_all_parts() -> None:
    generator = np.random.default_rng(0)
    weights = equal_weights(PARTS)
    keys = [(part, signal) for part in weights for signal in weights[part]]
    weights = {part: {signal: float(generator.random()) for signal in own} for part, own in weights.items()}
    users, items = ({key: generator.normal(size=(n, 4)).astype(np.float32) for key in keys} for n in (3, 6))
    expected = sum(weights[part][signal] * users[part, signal] @ items[part, signal].T for part, signal in keys)
    np.testing.assert_allclose(join(users, None) @ join(items, weights).T, expected, atol=1e-5)
    shares = [sum(4 for _, own in keys if own == signal) for signal in SIGNALS]
    assert join(users, None).shape == (3, sum(shares))

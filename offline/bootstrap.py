"""Whether one system ranks better than another, or by luck: gains (offline/metrics.py) by test event, paired.

Events of one user are not independent, so users are resampled, each with all of their events.

# C test events, U users, R resamples
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES, RESAMPLES_AT_ONCE = 10_000, 100


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % percentile interval over users."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    @property
    def is_above_zero(self) -> bool:
        return self.low > 0


def difference(gain_C: np.ndarray, other_C: np.ndarray, users_C: np.ndarray, seed: int = 0) -> Interval:
    """NDCG of one system minus another's on the same events, from what each event gains."""
    user_U, place_C = np.unique(users_C, return_inverse=True)
    sums_U = np.bincount(place_C, gain_C - other_C, len(user_U))
    counts_U = np.bincount(place_C, minlength=len(user_U))
    generator = np.random.default_rng([seed, 19])
    means = []
    for _ in range(NUM_RESAMPLES // RESAMPLES_AT_ONCE):
        drawn_RU = generator.multinomial(len(user_U), np.full(len(user_U), 1 / len(user_U)), RESAMPLES_AT_ONCE)
        means.append((drawn_RU @ sums_U) / (drawn_RU @ counts_U))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float((gain_C - other_C).mean()), float(low), float(high))


def fifths(value_C: np.ndarray) -> list[np.ndarray]:
    """bool [C] of the five groups of rising value, as equal in size as ties allow: equal values stay together."""
    edges = np.quantile(value_C, [0.2, 0.4, 0.6, 0.8])
    group_C = np.searchsorted(edges, value_C, side="left")
    return [group_C == number for number in range(5)]

"""Simulated shoppers: what they like, when they come, and what they choose."""

# S palettes, T patterns, N items

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from offline.demo.catalog import Product
from offline.demo.parameters import DemoParameters
from offline.demo.traits import PALETTES, PATTERNS
from offline.demo.wording import BRANDS, CATEGORIES

SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Shopper:
    """A person's lasting taste. All arrays are float64 and indexed like the traits of a Product."""

    user_id: str
    palette_start_S: np.ndarray
    palette_end_S: np.ndarray
    pattern_T: np.ndarray
    category: np.ndarray
    brand: np.ndarray

    def palette_S(self, progress: float) -> np.ndarray:
        """Taste in palettes after this part (0 to 1) of the history."""
        return (1 - progress) * self.palette_start_S + progress * self.palette_end_S


@dataclass(frozen=True)
class Event:
    """One purchase."""

    user_id: str
    item: int
    """Index into the catalog."""
    timestamp: int
    """Seconds since 1970."""


class Shop:
    """The catalog as shoppers see it: the utility of every item for one person at one moment."""

    def __init__(self, products: list[Product], parameters: DemoParameters) -> None:
        self._parameters = parameters
        self._palette = np.array([p.palette for p in products])
        self._pattern = np.array([p.pattern for p in products])
        self._category = np.array([p.category for p in products])
        self._brand = np.array([p.brand for p in products])
        self._popularity = np.array([p.popularity for p in products])
        self._launch_day = np.array([p.launch_day for p in products])

    @cached_property
    def _complements(self) -> np.ndarray:
        """bool[C, C]: whether the second category goes with the first."""
        shapes = [category.shape for category in CATEGORIES]
        return np.array([[shape in category.complements for shape in shapes] for category in CATEGORIES])

    def visual(self, shopper: Shopper, progress: float) -> np.ndarray:
        """float64[N]: the part of the utility that only a picture tells."""
        p = self._parameters
        palette = p.palette_weight * shopper.palette_S(progress)[self._palette]
        pattern = p.pattern_weight * shopper.pattern_T[self._pattern]
        return np.asarray(palette + pattern)

    def stated(self, shopper: Shopper, last: int | None) -> np.ndarray:
        """float64[N]: the part told by category, brand, popularity and the item bought last."""
        p = self._parameters
        utility = p.category_weight * shopper.category[self._category]
        utility = utility + p.brand_weight * shopper.brand[self._brand] + p.popularity_weight * self._popularity
        if last is not None:
            utility = utility + p.complement_weight * self._complements[self._category[last]][self._category]
        return np.asarray(utility)

    def novelty(self, day: float) -> np.ndarray:
        """float64[N]: the promotion of new arrivals; minus infinity before the launch."""
        age = day - self._launch_day
        new = (self._launch_day > 0) & (age <= self._parameters.novelty_days)
        return np.where(age < 0, -np.inf, self._parameters.novelty_weight * new)


def make_shoppers(parameters: DemoParameters, seed: int) -> list[Shopper]:
    rng = np.random.default_rng([seed, 2])
    return [_make_shopper(rng, f"u{i + 1:05d}", parameters) for i in range(parameters.num_shoppers)]


def simulate(shop: Shop, shoppers: list[Shopper], parameters: DemoParameters, seed: int) -> list[Event]:
    """Every shopper's purchases, shopper by shopper, oldest first; nobody buys an item twice.

    A choice maximises visual + stated + novelty + Gumbel noise, which is a softmax over the items on sale.
    """
    rng = np.random.default_rng([seed, 3])
    events: list[Event] = []
    for shopper in shoppers:
        timestamps = _visits(rng, parameters)
        bought: list[int] = []
        for step, timestamp in enumerate(timestamps):
            progress = step / (len(timestamps) - 1)
            day = (timestamp - parameters.start_s) / SECONDS_A_DAY
            utility = shop.visual(shopper, progress) + shop.stated(shopper, bought[-1] if bought else None)
            utility += shop.novelty(day) + rng.gumbel(size=len(utility))
            utility[bought] = -np.inf
            bought.append(int(utility.argmax()))
            events.append(Event(shopper.user_id, bought[-1], timestamp))
    return events


def _make_shopper(rng: np.random.Generator, user_id: str, parameters: DemoParameters) -> Shopper:
    start = rng.dirichlet(np.full(len(PALETTES), parameters.taste_concentration))
    second = rng.dirichlet(np.full(len(PALETTES), parameters.taste_concentration))
    return Shopper(
        user_id=user_id,
        palette_start_S=start,
        palette_end_S=second if rng.random() < parameters.drift_share else start,
        pattern_T=rng.dirichlet(np.full(len(PATTERNS), parameters.taste_concentration)),
        category=_favourites(rng, len(CATEGORIES), int(rng.integers(2, 4))),
        brand=_favourites(rng, len(BRANDS), int(rng.integers(1, 3))),
    )


def _favourites(rng: np.random.Generator, num_kinds: int, count: int) -> np.ndarray:
    """float64[num_kinds]: 1 for `count` kinds drawn at random, 0 elsewhere."""
    favoured = np.zeros(num_kinds)
    favoured[rng.permutation(num_kinds)[:count]] = 1
    return favoured


def _visits(rng: np.random.Generator, parameters: DemoParameters) -> list[int]:
    """Seconds of one shopper's purchases, oldest first; the latest lies near the end of the period."""
    p = parameters
    count = min(p.min_events + int(rng.poisson(p.mean_further_events)), p.max_events)
    before_end = rng.uniform(0, p.visit_gap_days)
    gaps = p.visit_gap_days * np.exp(p.gap_spread * rng.standard_normal(count - 1))
    gaps[rng.random(count - 1) < p.basket_probability] = 0
    days_back = before_end + np.concatenate([[0.0], np.cumsum(gaps)])
    room = p.num_days - 1
    days_back *= min(1.0, room / days_back[-1])
    seconds = p.start_s + ((p.num_days - days_back[::-1]) * SECONDS_A_DAY).astype(np.int64)
    if rng.random() < p.date_only_share:
        seconds -= (seconds - p.start_s) % SECONDS_A_DAY
    return [int(second) for second in seconds]

"""A question to the recommender and its answer, as plain values. Knows neither HTTP nor tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["model", "popular"]


@dataclass(frozen=True)
class Weights:
    """What each signal's part of the score is multiplied by; finite, not negative, 1 = as trained."""

    image: float = 1.0
    cf: float = 1.0
    text: float = 1.0


@dataclass(frozen=True)
class Query:
    """Rank the catalog for one history."""

    history: tuple[str, ...]
    """Item ids, oldest first; ids that the catalog does not have are reported, not fatal."""
    k: int = 10
    exclude: frozenset[str] = frozenset()
    """Ids never returned, beside those of the history."""
    categories: frozenset[str] = frozenset()
    """Return only items of one of these; empty: whatever the category."""
    brands: frozenset[str] = frozenset()
    """Return only items of one of these; empty: whatever the brand."""
    allow_repeats: bool = False
    """Let items of the history be returned."""
    weights: Weights = Weights()


@dataclass(frozen=True)
class Signals:
    """The three addends of a score: score = image + cf + text (paper, Eq. 8)."""

    image: float
    cf: float
    text: float


@dataclass(frozen=True)
class RankedItem:
    """One answer. `popular` items have no signals; their score is the item's share of training events."""

    item_id: str
    score: float
    source: Source
    signals: Signals | None


@dataclass(frozen=True)
class Ranking:
    """Items by falling score, ties by catalog row, and what they were made of."""

    items: tuple[RankedItem, ...]
    unknown_items: tuple[str, ...]
    """Ids of the history that the catalog does not have, in order, each once."""
    history_used: int
    """Items of the history that the model was shown."""
    history_truncated: bool
    """Whether older items were left out because the history is longer than the model reads."""
    checkpoint: str
    catalog_version: str
    unknown_filters: tuple[str, ...] = ()
    """Categories and brands of the query that no item has, in order of the alphabet."""

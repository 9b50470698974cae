"""What a new catalog version must show before it may be served. Knows neither its origin nor how it is published.

Every check returns problems as sentences, none when all is well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model.catalog import Catalog
from model.config import SIGNALS
from model.heads import NOTHING, Heads
from model.index import brute_force
from model.index_build import RECALL_CUTS
from model.joined import Joined
from model.ranking import Ranking
from offline.publish import Contents

NUM_RANDOM_USERS = 16
NUM_NAMED = 5
"""Items named in a problem; the others are counted."""


def check_contents(contents: Contents, joined: Joined) -> list[str]:
    """What can be seen without an index: ids, dims, numbers, signals."""
    return [
        *check_ids(contents),
        *check_dims(contents, joined),
        *check_numbers(contents),
        *check_signals(contents, joined.heads),
    ]


def check_ids(contents: Contents) -> list[str]:
    """Every row of every array belongs to one item, and no item has two."""
    ids = contents.items["item_id"].to_pylist()
    first_row = {item_id: row for row, item_id in reversed(list(enumerate(ids)))}
    repeated = np.array([first_row[item_id] != row for row, item_id in enumerate(ids)], np.bool_)
    lengths = {
        "segments": len(contents.segments.offsets) - 1,
        "popularity": len(contents.popularity),
        **{f"{name} vectors": len(vector_NW) for name, vector_NW in _vectors(contents).items()},
    }
    wrong = [
        f"{name} have {length:,} rows for {len(ids):,} items" for name, length in lengths.items() if length != len(ids)
    ]
    return wrong + _named("items that come twice", repeated, contents)


def check_dims(contents: Contents, joined: Joined) -> list[str]:
    """Widths as the checkpoint has them."""
    expected = {str(signal): len(joined.heads.stand_ins[signal]) for signal in SIGNALS} | {"item": sum(joined.widths)}
    return [
        f"{name} vectors are {vector_NW.shape[1]} wide, but the checkpoint needs {expected[name]}"
        for name, vector_NW in _vectors(contents).items()
        if vector_NW.shape[1] != expected[name]
    ]


def check_numbers(contents: Contents) -> list[str]:
    """No NaN or infinity anywhere, and no vector of zeros where there should be content."""
    problems = []
    for name, vector_NW in _vectors(contents).items():
        not_finite = np.logical_not(np.isfinite(vector_NW).all(axis=1))
        zero = np.logical_not(vector_NW.any(axis=1))
        # Of an item that lacks a signal the others may have weight zero: its vector says nothing, and is right.
        named = SIGNALS if name == "item" else (name,)
        zero &= np.all([contents.features.origin[signal] != NOTHING for signal in named], axis=0)  # type: ignore[index]
        problems += _named(f"{name} vectors with NaN or infinity", not_finite, contents)
        problems += _named(f"{name} vectors of zeros", zero, contents)
    return problems


def check_signals(contents: Contents, heads: Heads) -> list[str]:
    """Every item has at least one signal that takes part in retrieval."""
    origins = [contents.features.origin[signal] for signal in heads.config.signals]
    has_any = np.any(np.stack(origins) != NOTHING, axis=0)
    return _named("items with no usable signal (no picture, text or CF)", ~has_any, contents)


def check_removals(num_before: int, num_removed: int, max_share: float) -> list[str]:
    """Not more items leave than the operator allows."""
    if num_removed <= max_share * num_before:
        return []
    return [
        f"{num_removed:,} of {num_before:,} items of the current version would leave, over --max-removed "
        f"{max_share:g}: give the whole catalog as --items, or raise --max-removed"
    ]


def check_index(facts: dict[str, Any]) -> list[str]:
    """The index, `facts` as in the manifest, finds as much of the ten best as was asked for."""
    found = facts["recall"]["recall@10"]
    if found >= facts["min_recall"]:
        return []
    parameters = ", ".join(f"{name} {value:g}" for name, value in facts["parameters"].items())
    return [
        f"the {facts['kind']} index has recall@10 {found:.4f}, under --min-recall {facts['min_recall']:g}, though it "
        f"searches as deep as makes sense ({parameters}): take --index ivf-sq8 or exact, or lower --min-recall"
    ]


def index_recall(catalog: Catalog, seed: int = 0) -> dict[str, float]:
    """Share of the true top k that the index returns: for random users, and 1.0, where it is exact; else as measured
    when it was built.
    """
    if not catalog.index.is_exact:
        measured: dict[str, float] = catalog.manifest["index"]["recall"]
        return measured
    generator = np.random.default_rng(seed)
    users_BQ = generator.standard_normal((NUM_RANDOM_USERS, catalog.item_vectors.shape[1]), np.float32)
    _, rows_BK = catalog.index.search(users_BQ, max(RECALL_CUTS))
    truth_BK = np.stack([brute_force(catalog.item_vectors, user_Q, max(RECALL_CUTS))[1] for user_Q in users_BQ])
    return {f"recall@{k}": _overlap(rows_BK[:, :k], truth_BK[:, :k]) for k in RECALL_CUTS}


def check_recall(catalog: Catalog, recall: dict[str, float]) -> list[str]:
    """An exact index finds all."""
    if not catalog.index.is_exact:
        return []
    return [f"the index has {name} {value:.4f} against brute force" for name, value in recall.items() if value < 1]


def check_canaries(rankings: Sequence[Ranking]) -> list[str]:
    """Histories from training give finite scores that are not all the same."""
    problems = []
    for number, ranking in enumerate(rankings, 1):
        scores = np.array([item.score for item in ranking.items])
        if not np.isfinite(scores).all():
            problems.append(f"canary history {number} gives scores that are no numbers")
        elif len(scores) > 1 and np.ptp(scores) == 0:
            problems.append(f"canary history {number} gives every item the same score {scores[0]:g}")
    return problems


def _vectors(contents: Contents) -> dict[str, npt.NDArray[np.float32]]:
    features = {str(signal): contents.features.vectors[signal] for signal in SIGNALS}
    return features | {"item": contents.item_vectors}


def _named(what: str, bad_N: npt.NDArray[Any], contents: Contents) -> list[str]:
    rows = np.flatnonzero(bad_N)
    if not len(rows):
        return []
    names = ", ".join(contents.items["item_id"].take(rows[:NUM_NAMED]).to_pylist())
    return [f"{len(rows):,} {what}: {names}{', ...' if len(rows) > NUM_NAMED else ''}"]


def _overlap(found_BK: npt.NDArray[np.int64], truth_BK: npt.NDArray[np.int64]) -> float:
    hits = sum(len(np.intersect1d(found, truth)) for found, truth in zip(found_BK, truth_BK, strict=True))
    return hits / truth_BK.size

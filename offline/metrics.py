"""Ranks of targets, and what is averaged over them. Knows arrays of scores, no system that made them.

Every choice is against the system that is measured: a tie counts as lost, and a score that is not a number is an error.
"""

# B users scored together, N items, U users of a dataset

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.errors import InvalidInputError
from offline.dataset import Dataset

CUTOFFS = (5, 10)


def rank_of_target(
    scores_BN: np.ndarray, target_B: np.ndarray, excluded: Sequence[np.ndarray] | np.ndarray
) -> np.ndarray:
    """int64[B]: 1 + the number of other items that score at least as high as the target.

    `excluded` (a list of B row arrays, or bool[B, N]) are items that are never counted, such as the user's history; the
    target itself is counted as an item even when it is among them. A target at -inf comes after every item that is
    ranked, those at -inf too. Raises InvalidInputError on NaN or on shapes that do not fit.
    """
    if scores_BN.ndim != 2 or target_B.shape != (len(scores_BN),) or len(excluded) != len(scores_BN):
        raise InvalidInputError(
            f"scores {scores_BN.shape}, targets {target_B.shape} and {len(excluded)} exclusions do not fit: "
            "give [B, N], [B] and B of them",
            "scores",
        )
    if np.isnan(scores_BN).any():
        raise InvalidInputError("scores hold NaN: the system that made them is broken", "scores")
    users_B = np.arange(len(scores_BN))
    rivals_BN = scores_BN >= scores_BN[users_B, target_B][:, None]
    rivals_BN &= ~_mask(excluded, scores_BN.shape)
    rivals_BN[users_B, target_B] = False
    return np.asarray(1 + rivals_BN.sum(axis=1, dtype=np.int64))


def hit_at(ranks: np.ndarray, k: int) -> float:
    """Share of users whose target is among the first `k`."""
    return float(np.mean(_checked(ranks) <= k))


def ndcg_at(ranks: np.ndarray, k: int) -> float:
    """NDCG with one relevant item: the mean of `gains`."""
    return float(np.mean(gains(_checked(ranks), k)))


def gains(ranks: np.ndarray, k: int) -> np.ndarray:
    """What each rank adds to the sum that NDCG is the mean of: 1 / log2(1 + rank) within the first `k`, else 0."""
    return np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0)


def summarise(ranks: np.ndarray) -> dict[str, float]:
    """{"hit@5", "hit@10", "ndcg@5", "ndcg@10"} of one system."""
    hits = {f"hit@{k}": hit_at(ranks, k) for k in CUTOFFS}
    return hits | {f"ndcg@{k}": ndcg_at(ranks, k) for k in CUTOFFS}


def sample_candidates(dataset: Dataset, num: int, seed: int) -> np.ndarray:
    """int32[U, num]: for every user, `num` different random items of which none occurs in the user's events.

    The target is a test event and so never among them. The draw depends only on dataset, `num` and `seed`, so every
    system meets the same candidates. Raises InvalidInputError when a user has seen too much of the catalog.
    """
    generator = np.random.default_rng(seed)
    candidates = np.empty((len(dataset.users), num), np.int32)
    for user, events in enumerate(dataset.events):
        unseen = np.setdiff1d(np.arange(dataset.num_items, dtype=np.int32), events)
        if len(unseen) < num:
            raise InvalidInputError(
                f"user {dataset.users[user]!r} has only {len(unseen)} unseen items where {num} are asked for: "
                "lower evaluate.num_candidates",
                "evaluate.num_candidates",
            )
        candidates[user] = generator.choice(unseen, num, replace=False)
    return candidates


def popularity_scores(dataset: Dataset) -> np.ndarray:
    """float32[N]: training events of every item; validation and test events do not count."""
    return dataset.num_train_events.astype(np.float32)


def _checked(ranks: np.ndarray) -> np.ndarray:
    if not len(ranks):
        raise InvalidInputError("no ranks to average: the dataset has no users to evaluate", "ranks")
    return ranks


def _mask(excluded: Sequence[np.ndarray] | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(excluded, np.ndarray) and excluded.dtype == bool:
        return excluded
    mask_BN = np.zeros(shape, bool)
    for user, rows in enumerate(excluded):
        mask_BN[user, rows] = True
    return mask_BN

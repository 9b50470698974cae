"""Search by inner product over item vectors: the paper's Eq. 8 for the whole catalog in one call.

A searcher proposes candidates (model/index_kinds.py); the few that can still win are scored again one by one in double
precision. So a score does not depend on who shares the batch, on the number of threads, or on the device, and equal
scores come in row order. Knows nothing of items, signals, or what the vectors mean.

B users, N items, Q width of a vector, K results, F items proposed
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.errors import ArtifactError
from model.index_kinds import Exact, Floats, Mask, Rows, Searcher, open_searcher, products

Scores = npt.NDArray[np.float64]

# Proposed beyond what is asked and excluded, so that equal scores at the cut rarely need a second look.
NUM_SPARE = 32
# Rows read at a time where many vectors are walked through (48 MB at the paper's width, in double precision).
NUM_ROWS_AT_ONCE = 4096
# So few eligible items are all scored, whatever the kind: 9 ms for 100,000 rows of width 192 that are in memory.
NUM_SCORED_DIRECTLY = 100_000


class Index:
    """Item vectors that can be searched. For one thread at a time, as FAISS is on a GPU."""

    def __init__(
        self,
        vectors_NQ: Floats,
        searcher: Searcher,
        max_norm: float | None = None,
        num_scored_directly: int = NUM_SCORED_DIRECTLY,
    ) -> None:
        """`max_norm`: the largest L2 norm of a vector; unset: all vectors are read to find it, and to refuse NaN."""
        self.vectors_NQ = vectors_NQ
        self._searcher = searcher
        self._num_scored_directly = num_scored_directly
        self._max_norm = largest_norm(vectors_NQ) if max_norm is None else max_norm

    @property
    def num_items(self) -> int:
        return len(self.vectors_NQ)

    @property
    def width(self) -> int:
        return int(self.vectors_NQ.shape[1])

    @property
    def is_exact(self) -> bool:
        """Whether the answer is that of brute force, always; else only the scores and their order are."""
        return self._searcher.is_exact

    def search(
        self,
        users_BQ: Floats,
        k: int,
        excluded_rows: Sequence[npt.NDArray[np.integer[Any]]] | None = None,
        eligible_rows: Sequence[Rows | None] | None = None,
    ) -> tuple[Scores, Rows]:
        """The `k` items of highest inner product for every user, without that user's `excluded_rows`.

        `eligible_rows`: for every user the only rows to choose from, rising and each once, or None for all. Returns
        scores float64 [B, K] (falling) and rows [B, K] (rising among equal scores), K = min(k, N). A user with fewer
        than K items left gets all of them, then score -inf and row -1. Raises ValueError on a shape that does not fit
        and ArtifactError on a user vector that is not finite.
        """
        users_BQ = self._checked(users_BQ, k)
        excluded = [np.unique(rows) for rows in _for_each(users_BQ, excluded_rows, np.empty(0, np.int64))]
        eligible = [self._checked_rows(rows) for rows in _for_each(users_BQ, eligible_rows, None)]
        num_results = min(k, self.num_items)
        scores_BK = np.full((len(users_BQ), num_results), -np.inf)
        rows_BK = np.full((len(users_BQ), num_results), -1, np.int64)
        proposed = self._proposed_from_all(users_BQ, num_results, excluded, eligible)
        for user, user_Q in enumerate(users_BQ):
            rows = eligible[user]
            if rows is None:
                candidates = self._from_all(user_Q, num_results, excluded[user], *proposed[user])
            else:
                candidates = self._from_some(user_Q, num_results, _without(rows, excluded[user]))
            scores, rows = self._best(user_Q, num_results, candidates)
            scores_BK[user, : len(rows)], rows_BK[user, : len(rows)] = scores, rows
        return scores_BK, rows_BK

    def addends(self, user_Q: Floats, rows_K: Rows, widths: Sequence[int]) -> Scores:
        """What each score is the sum of, float64 [K, len(widths)]: inner products of parts of the vectors."""
        products_KQ = np.multiply(self.vectors_NQ[rows_K], user_Q, dtype=np.float64)
        parts = np.split(products_KQ, np.cumsum(widths)[:-1], axis=1)
        return np.stack([part.sum(axis=1) for part in parts], axis=1)

    def _checked(self, users_BQ: Floats, k: int) -> Floats:
        users_BQ = np.ascontiguousarray(users_BQ, np.float32)
        if users_BQ.ndim != 2 or users_BQ.shape[1] != self.width:
            raise ValueError(f"user vectors have shape {users_BQ.shape}; the index needs [B, {self.width}]")
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        if not np.isfinite(users_BQ).all():
            raise ArtifactError("a user vector is not finite: the checkpoint is damaged or its dtype overflows")
        return users_BQ

    def _checked_rows(self, rows: Rows | None) -> Rows | None:
        if rows is None:
            return None
        rows = np.ascontiguousarray(rows, np.int64)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.num_items:
            raise ValueError(f"eligible rows from {rows.min()} to {rows.max()} of {self.num_items} items")
        return rows

    def _proposed_from_all(
        self, users_BQ: Floats, num_results: int, excluded: Sequence[Rows], eligible: Sequence[Rows | None]
    ) -> dict[int, tuple[Floats, Rows]]:
        """Proposals, in one batch, for the users who may be shown any item."""
        users = [user for user, rows in enumerate(eligible) if rows is None]
        if not users:
            return {}
        num_wanted = num_results + max(len(excluded[user]) for user in users) + NUM_SPARE
        return dict(zip(users, zip(*self._searcher.propose(users_BQ[users], num_wanted), strict=True), strict=True))

    def _from_all(self, user_Q: Floats, num_results: int, excluded: Rows, scores_F: Floats, rows_F: Rows) -> Rows:
        if not user_Q.any():  # every score is zero, so that row order decides
            return _without(np.arange(min(self.num_items, num_results + len(excluded))), excluded)
        is_eligible = ~np.isin(rows_F, excluded)
        num_eligible = self.num_items - len(excluded)
        candidates = self._confirmed(user_Q, num_results, num_eligible, scores_F, rows_F, is_eligible)
        if candidates is None:
            candidates = self._shortlist(user_Q, num_results, _without(np.arange(self.num_items), excluded))
        return candidates

    def _from_some(self, user_Q: Floats, num_results: int, rows: Rows) -> Rows:
        if not user_Q.any():
            return rows[:num_results]
        if len(rows) > max(self._num_scored_directly, num_results):
            scores_1F, rows_1F = self._searcher.propose(user_Q[None], num_results + NUM_SPARE, self._mask(rows))
            everyone = np.ones(len(rows_1F[0]), np.bool_)
            candidates = self._confirmed(user_Q, num_results, len(rows), scores_1F[0], rows_1F[0], everyone)
            if candidates is not None:
                return candidates
        return self._shortlist(user_Q, num_results, rows)

    def _mask(self, rows: Rows) -> Mask:
        mask_N = np.zeros(self.num_items, np.bool_)
        mask_N[rows] = True
        return mask_N

    def _confirmed(
        self, user_Q: Floats, num_results: int, num_eligible: int, scores_F: Floats, rows_F: Rows, is_eligible_F: Mask
    ) -> Rows | None:
        """The proposed rows that can be among the best; None where rows that were not proposed are needed as well."""
        is_eligible_F = is_eligible_F & (rows_F >= 0)
        rows = rows_F[is_eligible_F]
        if not self._searcher.is_exact:
            return rows if len(rows) >= min(num_results, num_eligible) else None
        floor = _floor(scores_F[is_eligible_F], num_results, self._error(user_Q))
        if len(rows) == num_eligible or scores_F[-1] < floor:
            return rows[scores_F[is_eligible_F] >= floor]
        return None

    def _shortlist(self, user_Q: Floats, num_results: int, rows: Rows) -> Rows:
        """Of these rows, all that can be among the best, by scoring each in single precision."""
        scores = products(user_Q, self.vectors_NQ, rows)
        return rows[scores >= _floor(scores, num_results, self._error(user_Q))]

    def _best(self, user_Q: Floats, num_results: int, rows: Rows) -> tuple[Scores, Rows]:
        scores = self._exact_scores(user_Q, rows)
        order = np.lexsort((rows, -scores))[:num_results]
        return scores[order], rows[order]

    def _exact_scores(self, user_Q: Floats, rows: Rows) -> Scores:
        # Not a matrix product: its sums would depend on where a row lies in the block.
        parts = [np.multiply(self.vectors_NQ[part], user_Q, dtype=np.float64).sum(axis=1) for part in _parts(rows)]
        return np.concatenate(parts or [np.empty(0)])

    def _error(self, user_Q: Floats) -> float:
        """How far a single-precision inner product may lie from the true one.

        Rounding errors of Q additions grow as a random walk, sqrt(Q) times the unit roundoff of |u| |v|; four of them.
        """
        scale = float(np.linalg.norm(user_Q.astype(np.float64))) * self._max_norm
        return 4 * float(np.sqrt(self.width)) * float(np.finfo(np.float32).eps) * scale


def build_index(vectors_NQ: Floats, device: str = "cpu") -> Index:
    """An exact index of item vectors, float32 [N, Q]; on the GPU when `device` is CUDA.

    Raises ArtifactError when there is none, or when one is not finite (its row is named).
    """
    if vectors_NQ.ndim != 2 or not vectors_NQ.size:
        raise ArtifactError(f"item vectors have shape {vectors_NQ.shape}; an index needs at least one item, [N, Q]")
    vectors_NQ = np.ascontiguousarray(vectors_NQ, np.float32)
    return Index(vectors_NQ, Exact(vectors_NQ, device))


def load_index(folder: Path, vectors_NQ: Floats, device: str = "cpu", facts: Mapping[str, Any] | None = None) -> Index:
    """The index of a catalog. Reads neither vectors nor index, but maps both into memory.

    `folder`: the catalog's; `vectors_NQ`: its item vectors; `facts`: its manifest's `index`, as
    `model.index_build.write_index` returned them (None: an exact index). Raises ArtifactError when a file is missing,
    damaged, or of other vectors.
    """
    vectors_NQ = np.ascontiguousarray(vectors_NQ, np.float32)  # a plain view of what is laid out so
    return Index(vectors_NQ, open_searcher(folder, vectors_NQ, facts, device), (facts or {}).get("max_norm"))


def brute_force(
    vectors_NQ: Floats, user_Q: Floats, k: int, excluded_rows: npt.NDArray[np.integer[Any]] | None = None
) -> tuple[Scores, Rows]:
    """The slow twin of `Index.search` for one user, in plain NumPy: every score in double precision, then a sort."""
    blocks = [np.multiply(block, user_Q, dtype=np.float64).sum(axis=1) for block in blocks_of(vectors_NQ)]
    scores = np.concatenate(blocks)
    if excluded_rows is not None:
        scores[excluded_rows] = -np.inf
    order = np.lexsort((np.arange(len(scores)), -scores))[:k]
    order = order[scores[order] > -np.inf]
    return scores[order], order


def largest_norm(vectors_NQ: Floats) -> float:
    """The largest L2 norm; raises ArtifactError naming the first row that is not finite."""
    norms_N = norms(vectors_NQ)
    if not np.isfinite(norms_N).all():
        row = int(np.flatnonzero(~np.isfinite(norms_N))[0])
        raise ArtifactError(f"the item vector of row {row} is not finite: the checkpoint or a feature is damaged")
    return float(norms_N.max())


def norms(vectors_NQ: Floats) -> Scores:
    """L2 norms, float64 [N]."""
    return np.concatenate([np.linalg.norm(block.astype(np.float64), axis=1) for block in blocks_of(vectors_NQ)])


def blocks_of(vectors_NQ: Floats) -> Iterator[Floats]:
    """The vectors in order, `NUM_ROWS_AT_ONCE` at a time."""
    return (vectors_NQ[start : start + NUM_ROWS_AT_ONCE] for start in range(0, len(vectors_NQ), NUM_ROWS_AT_ONCE))


def _parts(rows: Rows) -> Iterator[Rows]:
    return (rows[start : start + NUM_ROWS_AT_ONCE] for start in range(0, len(rows), NUM_ROWS_AT_ONCE))


def _for_each(users_BQ: Floats, per_user: Sequence[Any] | None, default: Any) -> Sequence[Any]:
    if per_user is None:
        return [default] * len(users_BQ)
    if len(per_user) != len(users_BQ):
        raise ValueError(f"{len(users_BQ)} users but {len(per_user)} lists of rows")
    return per_user


def _without(rows: Rows, excluded: Rows) -> Rows:
    """`rows` but for `excluded`, both rising and each once; fast where few are excluded from many."""
    places = np.searchsorted(rows, excluded)
    found = places < len(rows)
    found[found] = rows[places[found]] == excluded[found]
    return np.delete(rows, places[found]) if found.any() else rows


def _floor(scores: Floats, num_results: int, error: float) -> float:
    """The score below which, whatever the rounding, an item is not among the best `num_results`."""
    if len(scores) <= num_results:
        return float(-np.finfo(np.float32).max)
    last = np.partition(scores, len(scores) - num_results)[len(scores) - num_results]
    return float(last) - 2 * error

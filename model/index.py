"""Exact search by inner product over item vectors: the paper's Eq. 8 for the whole catalog in one call.

FAISS proposes candidates; the few that can still win are scored again one by one in double precision. So a score does
not depend on who shares the batch, on the number of threads, or on the device, and equal scores come in row order.
Knows nothing of items, signals, or what the vectors mean.

B users, N items, Q = 3P width of a vector, K results
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.errors import ArtifactError, RecommenderError

Floats = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

# FAISS on a GPU cannot return more than this many results a query.
MAX_GPU_RESULTS = 2048
# Proposed beyond what is asked and excluded, so that equal scores at the cut rarely need a second look.
NUM_SPARE = 32
# Rows read at a time where all vectors are walked through (48 MB at the paper's width, in double precision).
NUM_ROWS_AT_ONCE = 4096
# Below this many multiplications, waking OpenMP's threads costs more than they save: 12 ms against 0.2 ms for 32 users
# and 240 items of width 384, measured on two cores that torch's own threads were using as well.
MIN_PARALLEL_WORK = 500_000_000


class Index:
    """Item vectors that can be searched. For one thread at a time, as FAISS is on a GPU."""

    def __init__(self, searcher: Any, vectors_NQ: Floats, max_results: int | None = None) -> None:
        """`searcher`: a FAISS index of `vectors_NQ`, on any device; `max_results`: the most it can return a query."""
        self._searcher = searcher
        self.vectors_NQ = vectors_NQ
        self._max_results = max_results or len(vectors_NQ)
        self._max_norm = _max_norm(vectors_NQ)

    @property
    def num_items(self) -> int:
        return len(self.vectors_NQ)

    @property
    def width(self) -> int:
        return int(self.vectors_NQ.shape[1])

    def search(
        self, users_BQ: Floats, k: int, excluded_rows: Sequence[npt.NDArray[np.integer[Any]]] | None = None
    ) -> tuple[Scores, Rows]:
        """The `k` items of highest inner product for every user, without that user's `excluded_rows`.

        Returns scores float64 [B, K] (falling) and rows [B, K] (rising among equal scores), K = min(k, N). A user with
        fewer than K items left gets score -inf and row -1 in the last places. Raises ValueError on a shape that does
        not fit and ArtifactError on a user vector that is not finite.
        """
        users_BQ = self._checked(users_BQ, k)
        excluded = [np.unique(rows) for rows in excluded_rows or [np.empty(0, np.int64)] * len(users_BQ)]
        if len(excluded) != len(users_BQ):
            raise ValueError(f"{len(users_BQ)} users but {len(excluded)} lists of excluded rows")
        num_results = min(k, self.num_items)
        scores_BK = np.full((len(users_BQ), num_results), -np.inf)
        rows_BK = np.full((len(users_BQ), num_results), -1, np.int64)
        proposed = self._propose(users_BQ, num_results + max(map(len, excluded), default=0) + NUM_SPARE)
        for user, user_Q in enumerate(users_BQ):
            candidates = self._candidates(user_Q, num_results, excluded[user], proposed[user])
            scores, rows = self._best(user_Q, num_results, candidates)
            scores_BK[user, : len(rows)], rows_BK[user, : len(rows)] = scores, rows
        return scores_BK, rows_BK

    def addends(self, user_Q: Floats, rows_K: Rows, num_parts: int = 3) -> Scores:
        """What each score is the sum of, float64 [K, num_parts]: inner products of equal parts of the vectors."""
        width = self.width // num_parts
        parts = np.multiply(self.vectors_NQ[rows_K], user_Q, dtype=np.float64).reshape(len(rows_K), num_parts, width)
        addends: Scores = parts.sum(axis=2)
        return addends

    def save(self, path: Path) -> None:
        """Write the vectors as FAISS's own file."""
        _faiss().write_index(_flat(self.vectors_NQ), str(path))

    def _checked(self, users_BQ: Floats, k: int) -> Floats:
        users_BQ = np.ascontiguousarray(users_BQ, np.float32)
        if users_BQ.ndim != 2 or users_BQ.shape[1] != self.width:
            raise ValueError(f"user vectors have shape {users_BQ.shape}; the index needs [B, {self.width}]")
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1")
        if not np.isfinite(users_BQ).all():
            raise ArtifactError("a user vector is not finite: the checkpoint is damaged or its dtype overflows")
        return users_BQ

    def _propose(self, users_BQ: Floats, num_wanted: int) -> Sequence[tuple[Floats, Rows] | None]:
        """FAISS's best rows for every user with its own scores; None where it cannot return that many."""
        num_wanted = min(num_wanted, self.num_items)
        if num_wanted > self._max_results or not len(users_BQ):
            return [None] * len(users_BQ)
        work = users_BQ.size * self.num_items
        with _threads(None if work > MIN_PARALLEL_WORK else 1):
            scores_BF, rows_BF = self._searcher.search(users_BQ, num_wanted)
        return list(zip(scores_BF, rows_BF, strict=True))

    def _candidates(
        self, user_Q: Floats, num_results: int, excluded: Rows, proposed: tuple[Floats, Rows] | None
    ) -> Rows:
        """Rows that hold every item of the true top `num_results`, and few others."""
        if not user_Q.any():  # every score is zero, so that row order decides
            return np.setdiff1d(np.arange(min(self.num_items, num_results + len(excluded))), excluded)
        error = self._error(user_Q)
        if proposed is not None:
            scores, rows = proposed
            eligible = ~np.isin(rows, excluded)
            floor = _floor(scores[eligible], num_results, error)
            if len(rows) == self.num_items or scores[-1] < floor:
                return rows[eligible & (scores >= floor)]
        scores = self._all_scores(user_Q)
        scores[excluded] = -np.inf
        return np.flatnonzero(scores >= _floor(scores[scores > -np.inf], num_results, error))

    def _best(self, user_Q: Floats, num_results: int, rows: Rows) -> tuple[Scores, Rows]:
        scores = self._exact_scores(user_Q, rows)
        order = np.lexsort((rows, -scores))[:num_results]
        return scores[order], rows[order]

    def _exact_scores(self, user_Q: Floats, rows: Rows) -> Scores:
        scores = np.empty(len(rows))
        for start in range(0, len(rows), NUM_ROWS_AT_ONCE):
            part = slice(start, start + NUM_ROWS_AT_ONCE)
            # Not a matrix product: its sums would depend on where a row lies in the block.
            scores[part] = np.multiply(self.vectors_NQ[rows[part]], user_Q, dtype=np.float64).sum(axis=1)
        return scores

    def _all_scores(self, user_Q: Floats) -> Floats:
        return np.concatenate([block @ user_Q for block in _blocks(self.vectors_NQ)])

    def _error(self, user_Q: Floats) -> float:
        """How far a single-precision inner product may lie from the true one.

        Rounding errors of Q additions grow as a random walk, sqrt(Q) times the unit roundoff of |u| |v|; four of them.
        """
        scale = float(np.linalg.norm(user_Q.astype(np.float64))) * self._max_norm
        return 4 * float(np.sqrt(self.width)) * float(np.finfo(np.float32).eps) * scale


@contextmanager
def _threads(num: int | None) -> Iterator[None]:
    """Search with `num` threads (None: as many as now), then put the number back: torch counts by the same setting."""
    faiss = _faiss()
    before = int(faiss.omp_get_max_threads())
    faiss.omp_set_num_threads(num or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def build_index(vectors_NQ: Floats, device: str = "cpu") -> Index:
    """An index of item vectors, float32 [N, Q]; on the GPU when `device` is CUDA and FAISS can use one.

    Raises ArtifactError when there is none, or when one is not finite (its row is named).
    """
    if vectors_NQ.ndim != 2 or not vectors_NQ.size:
        raise ArtifactError(f"item vectors have shape {vectors_NQ.shape}; an index needs at least one item, [N, 3P]")
    return _index(_flat(vectors_NQ), vectors_NQ.astype(np.float32, copy=False), device)


def load_index(path: Path, vectors_NQ: Floats | None = None, device: str = "cpu") -> Index:
    """Read an index that `Index.save` wrote, memory-mapped.

    `vectors_NQ`: the same vectors where the caller has them in an aligned array, for faster exact scoring.
    Raises ArtifactError when the file is missing or not such an index.
    """
    faiss = _faiss()
    try:
        searcher = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError:
        raise ArtifactError(f"{path} is missing or not a FAISS index: make the catalog again") from None
    if not isinstance(searcher, faiss.IndexFlat) or searcher.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ArtifactError(f"{path} is not an exact inner-product index: make the catalog again")
    if vectors_NQ is None:
        vectors_NQ = faiss.rev_swig_ptr(searcher.get_xb(), searcher.ntotal * searcher.d).reshape(-1, searcher.d)
    elif vectors_NQ.shape != (searcher.ntotal, searcher.d):
        raise ArtifactError(f"{path} indexes {searcher.ntotal} x {searcher.d} numbers, not {vectors_NQ.shape}")
    return _index(searcher, vectors_NQ, device)


def brute_force(
    vectors_NQ: Floats, user_Q: Floats, k: int, excluded_rows: npt.NDArray[np.integer[Any]] | None = None
) -> tuple[Scores, Rows]:
    """The slow twin of `Index.search` for one user, in plain NumPy: every score in double precision, then a sort."""
    scores_N = np.concatenate([(block.astype(np.float64) * user_Q).sum(axis=1) for block in _blocks(vectors_NQ)])
    eligible = np.setdiff1d(np.arange(len(vectors_NQ)), [] if excluded_rows is None else excluded_rows)
    scores = scores_N[eligible]
    order = np.lexsort((eligible, -scores))[:k]
    return scores[order], eligible[order]


def _index(searcher: Any, vectors_NQ: Floats, device: str) -> Index:
    faiss = _faiss()
    if device.startswith("cuda") and faiss.get_num_gpus():
        return Index(_on_gpu(searcher, device), vectors_NQ, MAX_GPU_RESULTS)
    return Index(searcher, vectors_NQ)


def _on_gpu(searcher: Any, device: str) -> Any:
    faiss = _faiss()
    _, _, number = device.partition(":")
    resources = faiss.StandardGpuResources()
    moved = faiss.index_cpu_to_gpu(resources, int(number or 0), searcher)
    moved.resources = resources  # FAISS does not keep its memory pool alive by itself
    return moved


def _flat(vectors_NQ: Floats) -> Any:
    searcher = _faiss().IndexFlatIP(int(vectors_NQ.shape[1]))
    for block in _blocks(vectors_NQ):
        searcher.add(np.ascontiguousarray(block, np.float32))
    return searcher


def _floor(scores: Floats, num_results: int, error: float) -> float:
    """The score below which, whatever the rounding, an item is not among the best `num_results`."""
    if len(scores) <= num_results:
        return float(-np.finfo(np.float32).max)
    last = np.partition(scores, len(scores) - num_results)[len(scores) - num_results]
    return float(last) - 2 * error


def _max_norm(vectors_NQ: Floats) -> float:
    norms = np.concatenate([np.linalg.norm(block.astype(np.float64), axis=1) for block in _blocks(vectors_NQ)])
    if not np.isfinite(norms).all():
        row = int(np.flatnonzero(~np.isfinite(norms))[0])
        raise ArtifactError(f"the item vector of row {row} is not finite: the checkpoint or a feature is damaged")
    return float(norms.max())


def _blocks(vectors_NQ: Floats) -> list[Floats]:
    return [vectors_NQ[start : start + NUM_ROWS_AT_ONCE] for start in range(0, len(vectors_NQ), NUM_ROWS_AT_ONCE)]


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        raise RecommenderError(
            "FAISS is not installed: install this with the extra `cpu` (faiss-cpu) or `gpu` (faiss-gpu)"
        ) from None
    return faiss

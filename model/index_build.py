"""Make an index of a catalog's item vectors: centres, codes, and as much search effort as the wanted recall takes.

Vectors are read in blocks, so that a catalog need not fit in memory; the codes of the index do. Approximate kinds treat
maximum inner product as search for the nearest neighbour: with one more number, sqrt(r^2 - |x|^2), all vectors x have
length r, and |q - x|^2 falls as q.x rises. Knows nothing of items, signals, or who asks.

N items, Q width of a vector, L lists, S items sampled for training, U users
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.errors import InvalidInputError
from model.index import Index, blocks_of, largest_norm, norms
from model.index_kinds import (
    INDEX_FILE,
    LISTS_FILE,
    Exact,
    Floats,
    Kind,
    Rows,
    faiss,
    lengthened,
    one_thread,
    open_searcher,
)

MAX_EXACT_BYTES = 256 * 2**20
"""`auto` is exact up to this size of the vectors: one core reads 25 GB/s, so that one query takes about 10 ms."""
DEFAULT_MIN_RECALL = 0.99
RECALL_CUTS = (10, 100)
MARGIN = 0.5
"""Effort is chosen for a recall that lies this share of the way from the wanted one to 1."""
NUM_QUERIES = 1536
"""Half of them choose the effort, the other half measure what is written down."""
MIN_USERS = 8
"""Fewer known users say too little of how users are distributed."""

MAX_LISTS = 4096
"""Every item is compared with every centre: 10 million items take 16 TFLOP."""
NUM_SAMPLED_PER_LIST = 64
NUM_KMEANS_STEPS = 10
NUM_TYPICAL = 4
"""Members that a list's spread is smoothed with: a list seen with one member is not known to be narrow."""
LENGTH_QUANTILE = 0.99
"""The length r of lists: a few very long items would make all others look alike. Measured against the maximum: 99.8 %
of the top ten in 128 of 1,024 lists instead of 98 %, with lengths spread by a factor of ten."""
OVERSAMPLING = {"ivf-flat": 1, "ivf-sq8": 2, "ivf-pq": 10}
"""Candidates scored exactly for each result, by what the codes lose."""
MAX_SHARE_SCANNED = 0.25
"""Beyond this, exact search is the better choice."""

NUM_LINKS = 32
BUILD_EFFORT = 100
MAX_GRAPH_EFFORT = 4096
NUM_TRAINED_ON = 16_384
"""Items that codes are trained on: 64 for each of the 256 values of a byte."""
MIN_ITEMS = 1000
"""Fewer are searched exactly in less than a millisecond."""
BLOCK = 65_536
"""Vectors encoded at a time."""
NUM_PRODUCTS = 2**24
"""Products of vectors and centres held at once."""


def choose_kind(num_items: int, width: int) -> Kind:
    """What `auto` means for a catalog of this size."""
    return "exact" if 4 * num_items * width <= MAX_EXACT_BYTES else "ivf-sq8"


def write_index(
    folder: Path,
    vectors_NQ: Floats,
    kind: Kind | Literal["auto"] = "auto",
    min_recall: float = DEFAULT_MIN_RECALL,
    users_UQ: Floats | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write an index of `vectors_NQ` to `folder`; returns the facts that `load_index` needs, for the manifest.

    `users_UQ`: real user vectors, float32; where there are enough, recall must be reached for users like them as well
    as for users drawn around items. The facts say the recall reached, at most a little above `min_recall`; they may
    say less, and it is the caller's part to refuse. Raises ArtifactError when a vector is not finite,
    InvalidInputError when there are too few items for the kind.
    """
    start = time.perf_counter()
    kind = choose_kind(*vectors_NQ.shape) if kind == "auto" else kind
    facts: dict[str, Any] = {"kind": kind, "min_recall": min_recall, "max_norm": largest_norm(vectors_NQ)}
    if kind == "exact":
        facts |= {"parameters": {}, "recall": {f"recall@{cut}": 1.0 for cut in RECALL_CUTS}, "bytes": 0}
    else:
        rng = np.random.default_rng(seed)
        make = _write_graph if kind == "hnsw" else _write_lists
        facts["parameters"], max_effort = make(folder, vectors_NQ, kind, rng)
        queries = draw_users(vectors_NQ, users_UQ, NUM_QUERIES, rng)
        facts |= _measured(folder, vectors_NQ, facts, queries, max_effort)
        facts["bytes"] = sum(path.stat().st_size for path in folder.glob(f"{Path(INDEX_FILE).stem}*"))
    return {**facts, "seconds": round(time.perf_counter() - start, 2)}


def draw_users(vectors_NQ: Floats, users_UQ: Floats | None, num: int, rng: np.random.Generator) -> dict[str, Floats]:
    """Groups of made-up users, about `num` in all, float32 [num / groups, Q] each.

    Users of unknown distribution may be nearer to items, or to nothing: what is found for all groups is found for them.
    """
    known = users_UQ is not None and len(users_UQ) >= MIN_USERS
    each = num // (4 if known else 3)
    centre_Q = vectors_NQ[_sampled_rows(len(vectors_NQ), BLOCK, rng)].mean(axis=0)

    def items(number: int) -> Floats:
        drawn: Floats = vectors_NQ[rng.integers(len(vectors_NQ), size=number)] - centre_Q
        return drawn

    groups = {
        "around items": items(each) + 0.5 * items(each),
        "between items": items(each) + items(each) + items(each),
        "unlike items": rng.standard_normal((each, vectors_NQ.shape[1]), np.float32),
    }
    if known:
        some, others = users_UQ[rng.integers(len(users_UQ), size=(2, each))]  # type: ignore[index,arg-type]
        share = rng.random((each, 1), np.float32)
        groups["like known users"] = share * some + (1 - share) * others + 0.25 * items(each)
    return groups


def recall(index: Index, users_UQ: Floats, truth_UK: Rows, cut: int) -> float:
    """Share of the true first `cut` that the index returns when asked for `cut`."""
    _, rows_UK = index.search(users_UQ, cut)
    hits = sum(
        len(np.intersect1d(found, true)) for found, true in zip(rows_UK, truth_UK[:, : rows_UK.shape[1]], strict=True)
    )
    return hits / rows_UK.size


def _measured(
    folder: Path, vectors_NQ: Floats, facts: dict[str, Any], groups: dict[str, Floats], max_effort: int
) -> dict[str, Any]:
    """The smallest effort that reaches the wanted recall in every group of users, and what it reaches on others.

    Measured on the files as they will be served.
    """
    exact = Exact(vectors_NQ)
    cases = [(users_UQ, exact.propose(users_UQ, max(RECALL_CUTS))[1]) for users_UQ in groups.values()]
    searcher = open_searcher(folder, vectors_NQ, {**facts, "parameters": {**facts["parameters"], "effort": 1}})
    index = Index(vectors_NQ, searcher, facts["max_norm"])

    def reached(effort: int, cut: int, first: int) -> float:
        searcher.effort = effort  # type: ignore[attr-defined]
        return min(recall(index, users_UQ[first::2], truth_UK[first::2], cut) for users_UQ, truth_UK in cases)

    wanted = facts["min_recall"] + MARGIN * (1 - facts["min_recall"])
    effort = _smallest(lambda tried: reached(tried, RECALL_CUTS[0], 0) >= wanted, max_effort)
    return {
        "parameters": {**facts["parameters"], "effort": effort},
        "recall": {f"recall@{cut}": round(reached(effort, cut, 1), 4) for cut in RECALL_CUTS},
        "users": {name: len(users_UQ) for name, users_UQ in groups.items()},
    }


def _smallest(suffices: Callable[[int], bool], most: int) -> int:
    """The smallest number up to `most` that suffices, within a sixteenth of it; `most` when none does."""
    high = 1
    while high < most and not suffices(high):
        high = min(2 * high, most)
    low = high // 2
    while high - low > max(1, high // 16):
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def _write_lists(folder: Path, vectors_NQ: Floats, kind: Kind, rng: np.random.Generator) -> tuple[dict[str, Any], int]:
    """Write an index of lists. Returns its parameters but for the effort, and the most effort that makes sense."""
    num_items, width = vectors_NQ.shape
    num_lists = min(MAX_LISTS, int(2 ** round(np.log2(2 * np.sqrt(num_items)))))
    if num_items < MIN_ITEMS:
        raise InvalidInputError(f"{num_items:,} items are too few for an index of kind {kind}: use exact", "index")
    sample_SQ = vectors_NQ[_sampled_rows(num_items, NUM_SAMPLED_PER_LIST * num_lists, rng)]
    radius = float(np.quantile(norms(sample_SQ), LENGTH_QUANTILE))
    centres_LX = _cluster(_equally_long(sample_SQ, radius), num_lists, rng)
    assigned_S = _nearest(_equally_long(sample_SQ, radius), centres_LX).numpy()
    index = _empty_lists(kind, centres_LX[:, :width].numpy())
    some = slice(None, None, -(-len(sample_SQ) // NUM_TRAINED_ON))
    if kind == "ivf-pq":
        _train(index, sample_SQ[some].copy(), assigned_S[some].copy())
    else:
        _train(index, _extremes(vectors_NQ), assigned_S[:2].copy())
    for start in range(0, num_items, BLOCK):
        block_NQ = np.ascontiguousarray(vectors_NQ[start : start + BLOCK])
        ids_N = np.arange(start, start + len(block_NQ))
        assigned_N = _nearest(_equally_long(block_NQ, radius), centres_LX).numpy()
        index.add_core(len(block_NQ), *map(faiss().swig_ptr, (block_NQ, ids_N, assigned_N)))
    faiss().write_index(index, str(folder / INDEX_FILE))
    spread_L = _spread(_equally_long(sample_SQ, radius), centres_LX, assigned_S)
    np.save(folder / LISTS_FILE, np.column_stack([centres_LX[:, :width].numpy(), spread_L / 2]))
    parameters = {"num_lists": num_lists, "radius": radius, "oversampling": OVERSAMPLING[kind]}
    return parameters, max(1, int(MAX_SHARE_SCANNED * num_lists))


def _empty_lists(kind: Kind, centres_LQ: Floats) -> Any:
    """A FAISS index with centres, whose codes are yet to be trained."""
    num_lists, width = centres_LQ.shape
    product = faiss().METRIC_INNER_PRODUCT
    quantizer = faiss().IndexFlatIP(width)
    quantizer.add(np.ascontiguousarray(centres_LQ))
    if kind == "ivf-flat":
        index = faiss().IndexIVFFlat(quantizer, width, num_lists, product)
    elif kind == "ivf-sq8":
        index = faiss().IndexIVFScalarQuantizer(
            quantizer, width, num_lists, faiss().ScalarQuantizer.QT_8bit, product, False
        )
    else:
        num_codes = next(codes for codes in range(max(1, width // 2), 0, -1) if width % codes == 0)
        index = faiss().IndexIVFPQ(quantizer, width, num_lists, num_codes, 8, product)
        index.pq.cp.niter = NUM_KMEANS_STEPS
    return index


def _train(index: Any, sample_SQ: Floats, assigned_S: Rows) -> None:
    """Train the codes alone; FAISS would assign the sample by its own rule first."""
    if index.by_residual:
        sample_SQ = sample_SQ - index.quantizer.reconstruct_batch(assigned_S)
    with one_thread():  # hundreds of tiny clusterings: 50 s, where two threads take 130
        index.train_encoder(len(sample_SQ), *map(faiss().swig_ptr, (sample_SQ, assigned_S)))
    index.is_trained = True


def _extremes(vectors_NQ: Floats) -> Floats:
    """float32 [2, Q]: the smallest and the largest of every number, the range of a byte.

    Of all items, not of a sample: the items that win are the longest, and a byte cuts off what lies outside its range.
    """
    blocks = [np.stack([block.min(axis=0), block.max(axis=0)]) for block in blocks_of(vectors_NQ)]
    return np.stack([np.min(blocks, axis=0)[0], np.max(blocks, axis=0)[1]])


def _cluster(sample_SX: Tensor, num_lists: int, rng: np.random.Generator) -> Tensor:
    """Centres float32 [L, X] by Lloyd's algorithm; a centre that nothing is nearest to moves to a random item."""
    centres_LX = sample_SX[rng.choice(len(sample_SX), num_lists, replace=False)]
    for _ in range(NUM_KMEANS_STEPS):
        assigned_S = _nearest(sample_SX, centres_LX)
        counts_L = assigned_S.bincount(minlength=num_lists)
        centres_LX = torch.zeros_like(centres_LX).index_add_(0, assigned_S, sample_SX) / counts_L.clamp(min=1)[:, None]
        empty = (counts_L == 0).nonzero()[:, 0]
        centres_LX[empty] = sample_SX[rng.integers(len(sample_SX), size=len(empty))]
    return centres_LX


def _nearest(vectors_NX: Tensor, centres_LX: Tensor) -> Tensor:
    """int64 [N]: the centre at the smallest L2 distance."""
    half_squares_L = centres_LX.square().sum(dim=1) / 2
    step = max(1, NUM_PRODUCTS // len(centres_LX))
    parts = (vectors_NX[start : start + step] for start in range(0, len(vectors_NX), step))
    return torch.cat([torch.addmm(-half_squares_L, part, centres_LX.T).argmax(dim=1) for part in parts])


def _spread(sample_SX: Tensor, centres_LX: Tensor, assigned_S: Rows) -> Floats:
    """float32 [L]: mean square distance of a list's items from its centre, drawn towards the mean of all lists."""
    squares_S = (sample_SX - centres_LX[assigned_S]).square().sum(dim=1).numpy()
    sums_L = np.bincount(assigned_S, weights=squares_S, minlength=len(centres_LX))
    counts_L = np.bincount(assigned_S, minlength=len(centres_LX))
    smoothed = (sums_L + NUM_TYPICAL * squares_S.mean()) / (counts_L + NUM_TYPICAL)
    return np.asarray(smoothed, np.float32)


def _equally_long(vectors_NQ: Floats, radius: float) -> Tensor:
    """float32 [N, Q + 1]: with one more number that makes vectors up to `radius` exactly so long."""
    return torch.from_numpy(np.column_stack([vectors_NQ, _missing_lengths(vectors_NQ, radius)]))


def _missing_lengths(vectors_NQ: Floats, radius: float) -> Floats:
    lengths: Floats = np.sqrt(np.maximum(radius**2 - norms(vectors_NQ) ** 2, 0)).astype(np.float32)
    return lengths


def _sampled_rows(num_items: int, num: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Rising, so that a memory map is read forwards."""
    return np.sort(rng.choice(num_items, min(num, num_items), replace=False))


def _write_graph(folder: Path, vectors_NQ: Floats, kind: Kind, _rng: np.random.Generator) -> tuple[dict[str, Any], int]:
    """Write a graph. Returns its parameters but for the effort, and the most effort that makes sense."""
    num_items = len(vectors_NQ)
    if num_items < MIN_ITEMS:
        raise InvalidInputError(f"{num_items:,} items are too few for an index of kind {kind}: use exact", "index")
    longest = largest_norm(vectors_NQ)
    extremes_2X = lengthened(_extremes(vectors_NQ), np.array([0, longest], np.float32))
    index = faiss().IndexHNSWSQ(extremes_2X.shape[1], faiss().ScalarQuantizer.QT_8bit, NUM_LINKS)
    index.hnsw.efConstruction = BUILD_EFFORT
    index.train(extremes_2X)
    for start in range(0, num_items, BLOCK):
        block_NQ = vectors_NQ[start : start + BLOCK]
        index.add(lengthened(block_NQ, _missing_lengths(block_NQ, longest)))
    faiss().write_index(index, str(folder / INDEX_FILE))
    return {"num_links": NUM_LINKS, "build_effort": BUILD_EFFORT, "radius": longest}, MAX_GRAPH_EFFORT

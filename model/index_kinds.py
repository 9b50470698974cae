"""Who proposes candidates to `model.index.Index`: every item, the items of some lists, or the neighbours in a graph.

    exact       all items; nothing is stored beside the item vectors themselves
    ivf-flat    items in lists around centres, of which the most promising are scanned; vectors as they are
    ivf-sq8     the same, one byte a number
    ivf-pq      the same, half a byte a number
    hnsw        a graph of neighbours, one byte a number; on the processor only, FAISS has no GPU form of it

All but `exact` are approximate; how much they find is measured when they are built (model/index_build.py). A kind is
written as files of its own beside the item vectors. Knows nothing of items, signals, or what the vectors mean.

B users, N items, Q width of a vector, F results found, L lists, M lists scanned
"""

from __future__ import annotations

import importlib.metadata
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch

from model.arrays import read_array
from model.errors import ArtifactError, RecommenderError

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

Kind = Literal["exact", "ivf-flat", "ivf-sq8", "ivf-pq", "hnsw"]
KINDS: tuple[Kind, ...] = get_args(Kind)
INDEX_FILE = "index.faiss"
LISTS_FILE = "index_lists.npy"

# From this many users on, a matrix product beats one scan for each: 60 ms against 180 for 64 users and 100,000 items of
# width 192, 11 ms against 3 for one user (one core; FAISS itself changes its ways at 20).
NUM_PRODUCT_USERS = 20
# Scores held at once, by device.
NUM_SCORES = {"cpu": 2**22, "cuda": 2**28}
# Below this many multiplications, waking OpenMP's threads costs more than they save: 12 ms against 0.2 ms for 32 users
# and 240 items of width 384, measured on two cores that torch's own threads were using as well.
MIN_PARALLEL_WORK = 500_000_000
# FAISS on a GPU cannot return more than this many results a query, nor scan more lists.
MAX_GPU_RESULTS = 2048
# A search among a part of the items goes deeper by the inverse of that part, up to this factor.
MAX_DEEPER = 16


class Searcher(Protocol):
    """Proposes candidates. For one thread at a time, as FAISS is on a GPU."""

    is_exact: bool
    """Whether nothing that was not proposed can score above what was, but for rounding in single precision."""

    def propose(self, users_BQ: Floats, num: int, mask_N: Mask | None = None) -> tuple[Floats, Rows]:
        """At least the best `num` that this kind finds among `mask_N` (default: all), by falling estimate of the score.

        Returns estimates float32 [B, F] and rows int64 [B, F]; row -1 where there are no more.
        """
        ...


class Exact:
    """Scores every item in single precision; on a GPU, the vectors are copied there."""

    is_exact = True

    def __init__(self, vectors_NQ: Floats, device: str = "cpu") -> None:
        faiss()  # refused now, not at the first request
        self._vectors_NQ = vectors_NQ
        with warnings.catch_warnings():
            # A memory map is read-only, and only read.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            self._items_NQ = torch.from_numpy(vectors_NQ).to(device if torch.device(device).type == "cuda" else "cpu")

    def propose(self, users_BQ: Floats, num: int, mask_N: Mask | None = None) -> tuple[Floats, Rows]:
        num = min(num, len(self._vectors_NQ))
        if self._items_NQ.device.type == "cpu" and len(users_BQ) < NUM_PRODUCT_USERS:
            return self._by_scan(users_BQ, num, mask_N)
        with _full_precision(), torch.inference_mode():
            return self._by_products(users_BQ, num, mask_N)

    def _by_scan(self, users_BQ: Floats, num: int, mask_N: Mask | None) -> tuple[Floats, Rows]:
        (num_items, width), pointer = self._vectors_NQ.shape, faiss().swig_ptr
        scores_BF, rows_BF = _results(len(users_BQ), num)
        with _selector(mask_N) as selector, _threads(users_BQ, num_items):
            faiss().knn_inner_product(
                pointer(users_BQ), pointer(self._vectors_NQ), width, len(users_BQ), num_items, num,
                pointer(scores_BF), pointer(rows_BF), selector,
            )  # fmt: skip
        return scores_BF, rows_BF

    def _by_products(self, users_BQ: Floats, num: int, mask_N: Mask | None) -> tuple[Floats, Rows]:
        device = self._items_NQ.device
        user_BQ = torch.from_numpy(users_BQ).to(device)
        step = max(1, NUM_SCORES[device.type] // len(users_BQ))
        best_BF = torch.empty((len(users_BQ), 0), device=device)
        row_BF = torch.empty((len(users_BQ), 0), dtype=torch.int64, device=device)
        for start in range(0, len(self._items_NQ), step):
            score_BN = user_BQ @ self._items_NQ[start : start + step].T
            if mask_N is not None:
                score_BN.masked_fill_(~torch.from_numpy(mask_N[start : start + step]).to(device), -torch.inf)
            found = score_BN.topk(min(num, score_BN.shape[1]))
            best_BF, row_BF = torch.cat([best_BF, found.values], 1), torch.cat([row_BF, found.indices + start], 1)
            best_BF, order = best_BF.topk(min(num, best_BF.shape[1]))
            row_BF = row_BF.gather(1, order)
        return best_BF.cpu().numpy(), row_BF.masked_fill(best_BF == -torch.inf, -1).cpu().numpy()


class Lists:
    """FAISS's inverted lists, scanned in an order of our own.

    Inner products make an item attractive by its length as well as by its direction, so the centre nearest to a user is
    no guide. A list is as promising as its centre's product with the user (brought to a length that is usual for items)
    plus half the mean square distance of its items from the centre: a wide list may hold an item far better than its
    centre. That sum is the L2 distance of the well-known reduction of maximum inner product to nearest neighbour.
    """

    is_exact = False

    def __init__(self, index: Any, lists_LX: Floats, parameters: Mapping[str, Any], device: str = "cpu") -> None:
        """`lists_LX`: float32 [L, Q + 1], centre and half the mean square distance from it (LISTS_FILE)."""
        self._index = index
        self._centres_LQ = np.ascontiguousarray(lists_LX[:, :-1])
        self._bonus_L = np.ascontiguousarray(lists_LX[:, -1])
        self.effort = int(parameters["effort"])
        """Lists scanned."""
        self._oversampling = int(parameters["oversampling"])
        self._radius = float(parameters["radius"])
        self._gpu_index = on_gpu(index, device)

    def propose(self, users_BQ: Floats, num: int, mask_N: Mask | None = None) -> tuple[Floats, Rows]:
        num = min(num * self._oversampling, int(self._index.ntotal))
        num_scanned = min(len(self._bonus_L), self.effort * _deeper(mask_N))
        lists_BM, products_BM = self._promising(users_BQ, num_scanned)
        # A selector is ignored on a GPU, so that a search in a part of the items stays on the processor.
        use_gpu = self._gpu_index is not None and mask_N is None and max(num, num_scanned) <= MAX_GPU_RESULTS
        index = self._gpu_index if use_gpu else self._index
        with _selector(mask_N) as selector, _threads(users_BQ, self._index.ntotal * num_scanned // len(self._bonus_L)):
            parameters = faiss().SearchParametersIVF(nprobe=num_scanned, sel=selector)
            return _search_lists(index, users_BQ, num, lists_BM, products_BM, parameters)

    def _promising(self, users_BQ: Floats, num_scanned: int) -> tuple[Rows, Floats]:
        products_BL = np.stack([products(user_Q, self._centres_LQ) for user_Q in users_BQ])
        norms_B1 = np.linalg.norm(users_BQ, axis=1, keepdims=True)
        promise_BL = products_BL + self._bonus_L * (norms_B1 / self._radius)
        lists_BM = np.argpartition(-promise_BL, num_scanned - 1, axis=1)[:, :num_scanned]
        return lists_BM.astype(np.int64), np.take_along_axis(products_BL, lists_BM, axis=1)


class Graph:
    """FAISS's HNSW. Item vectors carry one more number that makes them all equally long (see model/index_build.py)."""

    is_exact = False

    def __init__(self, index: Any, parameters: Mapping[str, Any]) -> None:
        self._index = index
        self.effort = int(parameters["effort"])
        """Candidates kept while walking the graph."""
        self._radius = float(parameters["radius"])

    def propose(self, users_BQ: Floats, num: int, mask_N: Mask | None = None) -> tuple[Floats, Rows]:
        num = min(num, int(self._index.ntotal))
        effort = max(self.effort * _deeper(mask_N), num)
        with _selector(mask_N) as selector, _threads(users_BQ, effort * 32):
            parameters = faiss().SearchParametersHNSW(efSearch=effort, sel=selector)
            distances_BF, rows_BF = self._index.search(self._as_long_as_items(users_BQ), num, params=parameters)
        return -distances_BF, rows_BF

    def _as_long_as_items(self, users_BQ: Floats) -> Floats:
        """Of a much shorter or longer user, rounding would leave nothing of the differences between distances."""
        norms_B1: Floats = np.linalg.norm(users_BQ, axis=1, keepdims=True)
        norms_B1[norms_B1 == 0] = 1
        return lengthened(users_BQ / norms_B1 * np.float32(self._radius))


def open_searcher(folder: Path, vectors_NQ: Floats, facts: Mapping[str, Any] | None, device: str = "cpu") -> Searcher:
    """The searcher that `facts` (the manifest's `index`; None: exact) describe, its files memory-mapped.

    Raises ArtifactError when a file is missing, damaged or of other vectors, or when the facts are not understood.
    """
    kind = facts["kind"] if facts else "exact"
    if kind not in KINDS:
        raise ArtifactError(f"{folder} has an index of kind {kind!r}; this program knows {', '.join(KINDS)}: reindex")
    if kind == "exact" or facts is None:
        return Exact(vectors_NQ, device)
    index = _read(folder / INDEX_FILE, kind, vectors_NQ.shape)
    try:
        if kind == "hnsw":
            return Graph(index, facts["parameters"])
        lists_LX = read_array(folder / LISTS_FILE, np.float32, (index.nlist, vectors_NQ.shape[1] + 1))
        return Lists(index, lists_LX, facts["parameters"], device)
    except KeyError as error:
        raise ArtifactError(f"the manifest of {folder} does not say {error} of its index: reindex") from None


def products(user_Q: Floats, vectors_NQ: Floats, rows: Rows | None = None) -> Floats:
    """Inner products of one user with all vectors, or those of `rows`, in single precision and by one thread.

    NumPy would copy the rows first and wake a pool of threads: 6.1 ms against 1.8 for 20,000 rows of width 192.
    """
    pointer, width = faiss().swig_ptr, vectors_NQ.shape[1]
    found = np.empty(len(vectors_NQ) if rows is None else len(rows), np.float32)
    ends = pointer(found), pointer(user_Q), pointer(vectors_NQ)
    if rows is None:
        faiss().fvec_inner_products_ny(*ends, width, len(vectors_NQ))
    else:
        with one_thread():
            faiss().fvec_inner_products_by_idx(*ends, pointer(rows), width, 1, len(rows))
    return found


def lengthened(vectors_NQ: Floats, lengths_N: Floats | None = None) -> Floats:
    """The vectors with one more number each, 0 or `lengths_N`, and zeros up to the next multiple of 16.

    FAISS is several times slower at widths that its vector instructions do not divide.
    """
    num, width = vectors_NQ.shape
    longer = np.zeros((num, (width // 16 + 1) * 16), np.float32)
    longer[:, :width] = vectors_NQ
    if lengths_N is not None:
        longer[:, width] = lengths_N
    return longer


def on_gpu(index: Any, device: str) -> Any | None:
    """A copy of FAISS's lists on the GPU where `device` is CUDA and FAISS can use one; None elsewhere."""
    gpu = torch.device(device)
    if gpu.type != "cuda" or not hasattr(faiss(), "StandardGpuResources") or not faiss().get_num_gpus():
        return None
    resources, options = faiss().StandardGpuResources(), faiss().GpuClonerOptions()
    options.useFloat16 = True  # the tables of ivf-pq would not fit a block's memory in single precision
    try:
        copy = faiss().index_cpu_to_gpu(resources, gpu.index or 0, index, options)
    except RuntimeError as error:  # a code length that the GPU has no kernel for
        log.warning("the index stays on the processor: %s", error)
        return None
    faiss().class_wrappers.add_to_referenced_objects(copy, resources)
    return copy


@cache
def faiss() -> Any:
    """The FAISS module. Raises RecommenderError where neither or both of its builds are installed."""
    builds = {d.name for d in importlib.metadata.distributions() if d.name.startswith(("faiss-cpu", "faiss-gpu"))}
    if len(builds) > 1:
        raise RecommenderError(
            f"{' and '.join(sorted(builds))} are both installed and overwrite each other's files: uninstall both, then "
            "install this with one of the extras `cpu` and `gpu`"
        )
    try:
        import faiss as module
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise
        raise RecommenderError(
            "FAISS is not installed: install this with the extra `cpu` (faiss-cpu) or `gpu` (faiss-gpu)"
        ) from None
    return module


@contextmanager
def one_thread() -> Iterator[None]:
    """Let FAISS and torch use one thread in this thread, then put the number back: they count by the same setting."""
    torch.get_num_threads()  # sets it, at its first call in a thread, to what torch thinks best
    before = int(faiss().omp_get_max_threads())
    faiss().omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss().omp_set_num_threads(before)


def _read(path: Path, kind: Kind, shape: tuple[int, ...]) -> Any:
    """A FAISS index, memory-mapped: lists by one flag, graphs by the other."""
    flag = faiss().IO_FLAG_MMAP_IFC if kind == "hnsw" else faiss().IO_FLAG_MMAP
    try:
        index = faiss().read_index(str(path), flag)
    except RuntimeError:
        raise ArtifactError(f"{path} is missing or not a FAISS index: make the catalog again") from None
    expected, width = (
        (faiss().IndexHNSWSQ, (shape[1] // 16 + 1) * 16) if kind == "hnsw" else (faiss().IndexIVF, shape[1])
    )
    if not isinstance(index, expected) or (index.ntotal, index.d) != (shape[0], width):
        raise ArtifactError(
            f"{path} is a {type(index).__name__} of {index.ntotal} x {index.d} numbers, not {kind} of "
            f"{shape[0]} x {width}: make the catalog again"
        )
    if kind != "hnsw":
        # Its threads would touch every list before the scan does.
        faiss().downcast_InvertedLists(index.invlists).prefetch_nthread = 0
    return index


def _search_lists(
    index: Any, users_BQ: Floats, num: int, lists_BM: Rows, products_BM: Floats, parameters: Any
) -> tuple[Floats, Rows]:
    """`search_preassigned` with parameters, which FAISS's own Python wrapper does not pass on."""
    scores_BF, rows_BF = _results(len(users_BQ), num)
    pointers = map(faiss().swig_ptr, (lists_BM, np.ascontiguousarray(products_BM), scores_BF, rows_BF))
    index.search_preassigned_c(len(users_BQ), faiss().swig_ptr(users_BQ), num, *pointers, False, parameters)
    return scores_BF, rows_BF


def _results(num_users: int, num: int) -> tuple[Floats, Rows]:
    """Where FAISS writes estimates and rows."""
    return np.empty((num_users, num), np.float32), np.empty((num_users, num), np.int64)


@contextmanager
def _selector(mask_N: Mask | None) -> Iterator[Any]:
    """FAISS's form of a mask; the bits live as long as the context."""
    if mask_N is None:
        yield None
        return
    bits = np.packbits(mask_N, bitorder="little")
    yield faiss().IDSelectorBitmap(len(mask_N), faiss().swig_ptr(bits))


def _deeper(mask_N: Mask | None) -> int:
    """By how much a search among `mask_N` must look at more items than one among all."""
    return 1 if mask_N is None else min(MAX_DEEPER, -(-len(mask_N) // max(1, int(np.count_nonzero(mask_N)))))


@contextmanager
def _threads(users_BQ: Floats, num_scored: int) -> Iterator[None]:
    """Search with all threads where they help.

    FAISS shares out users, so that more than one thread for one user only costs their waking.
    """
    if len(users_BQ) > 1 and users_BQ.size * num_scored > MIN_PARALLEL_WORK:
        yield
    else:
        with one_thread():
            yield


@contextmanager
def _full_precision() -> Iterator[None]:
    """Multiply float32 as float32, whatever shortcut (TF32, bfloat16) is set for the language model."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

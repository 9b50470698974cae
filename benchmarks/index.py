"""What each kind of index costs and finds, from ten thousand to ten million items.

    python -m benchmarks.index [--quick] [--json PATH] [--sizes N ...] [--kinds KIND ...] [--width 192]

Item and user vectors are made up after trained ones (benchmarks/index_vectors.py); `hard` has lengths spread by a
factor of ten and users unlike any item. The effort of an approximate kind is chosen at build for users that the build
makes up itself; recall here is that of others, against exact search. Building and serving run in processes of their
own, so that memory is that of one index: `own` is what the process holds, `mapped` what it has touched of files, which
the system may take back. Everything is warm: files that do not fit in memory would be slower.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.index_vectors import Geometry, World
from benchmarks.report import Report, at_least, at_most, benchmark_parser, finish
from model.catalog import Catalog, current_version
from model.index import build_index, load_index
from model.index_build import DEFAULT_MIN_RECALL, MIN_ITEMS, choose_kind, draw_users, recall, write_index
from model.index_kinds import KINDS, Kind
from model.language_model import choose_device
from model.store import Store

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
QUICK_SIZES = (10_000,)
QUICK_KINDS: tuple[Kind, ...] = ("exact", "ivf-flat", "ivf-sq8")
NUM_USERS = 500
NUM_KNOWN_USERS = 8
"""As many as a checkpoint has canary histories; the build knows them."""
BATCH = 64
NUM_BATCHES = 10
K = 10
ELIGIBLE_SHARE = 0.1
MAX_HARD_ITEMS = 1_000_000
"""Hard vectors show what is found, not what a size costs."""
MAX_HELD_GIB = 6
"""Codes that a build may hold in memory."""
MAX_P99_MS = 20
MIN_RECALL_LARGE = 0.95
"""Of ten million items, as 24 GiB allow."""
MAX_RESIDENT_GIB = 24
SEED = 0


@dataclass(frozen=True)
class Case:
    """One set of vectors in files: `items.npy` [N, Q], `users.npy` [NUM_USERS, Q], `known.npy`, `truth.npy`."""

    folder: Path
    name: str
    num_items: int
    width: int
    device: str
    max_build_minutes: float

    def vectors(self) -> np.ndarray:
        return np.load(self.folder / "items.npy", mmap_mode="r")

    def array(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy")


def main() -> int:
    arguments = parse()
    settings = {name: value for name, value in vars(arguments).items() if name not in ("json", "store", "folder")}
    threads = {"threads": torch.get_num_threads(), "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY")}
    report = Report("index", SEED, {**settings, **threads, "load_before": os.getloadavg()})
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="index-") as folder:
        print(HEADER)
        for case in cases(Path(folder), arguments):
            for kind in arguments.kinds:
                report.rows.append(row(case, kind, report.rows))
                print(line(report.rows[-1]), flush=True)
            (case.folder / "items.npy").unlink()
            save(report, arguments.json)  # the next size may take an hour
    return finish(report, arguments.json)


def save(report: Report, path: Path | None) -> None:
    report.checks = checks(report.rows)
    if path is not None:
        plot(report.rows, path.with_suffix(".png"))
        path.write_text(json.dumps(report.as_json(), indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = benchmark_parser(__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of items (default: 10k, 100k, 1M, 10M)")
    parser.add_argument("--kinds", choices=KINDS, nargs="+", help="default: all, or three with --quick")
    parser.add_argument("--geometries", choices=["trained", "hard"], nargs="+", default=["trained", "hard"])
    parser.add_argument("--width", type=int, default=192, help="of an item vector, 3P (default: 192)")
    parser.add_argument("--published", action="store_true", help="the vectors of the catalog in --store as well")
    parser.add_argument("--max-build-minutes", type=float, default=10, help="leave out what would take longer")
    parser.add_argument("--device", default="auto", help="where indexes search")
    parser.add_argument("--folder", type=Path, help="for files of up to 10 GB each (default: the system's)")
    arguments = parser.parse_args()
    arguments.sizes = arguments.sizes or list(QUICK_SIZES if arguments.quick else SIZES)
    arguments.kinds = arguments.kinds or list(QUICK_KINDS if arguments.quick else KINDS)
    arguments.device = str(choose_device(arguments.device))
    return arguments


def cases(folder: Path, arguments: argparse.Namespace) -> Any:
    """Every set of vectors, written when its turn comes."""
    if arguments.published:
        yield published(folder, arguments)
    for geometry in arguments.geometries:
        for num_items in arguments.sizes:
            if geometry == "trained" or num_items <= MAX_HARD_ITEMS:
                yield made_up(folder, geometry, num_items, arguments)


def made_up(folder: Path, geometry: Geometry, num_items: int, arguments: argparse.Namespace) -> Case:
    world = World(arguments.width, geometry, SEED)
    shape = (num_items, arguments.width)
    case = Case(folder / f"{geometry}-{num_items}", geometry, *shape, arguments.device, arguments.max_build_minutes)
    case.folder.mkdir()
    vectors = np.lib.format.open_memmap(case.folder / "items.npy", "w+", np.float32, shape)
    start = 0
    for block in world.items(num_items):
        vectors[start : start + len(block)] = block
        start += len(block)
    vectors.flush()
    users = world.users(NUM_USERS + NUM_KNOWN_USERS)
    return with_users(case, users[:NUM_USERS], users[NUM_USERS:])


def published(folder: Path, arguments: argparse.Namespace) -> Case:
    """The item vectors that are served, and users made up from them, of whom the build knows none."""
    store = Store(arguments.store)
    version = current_version(store.catalogs)
    if version is None:
        raise SystemExit(f"no catalog is published in {store.catalogs}")
    vectors = Catalog.load(store.catalogs / version).item_vectors
    name = f"catalog {version}"
    case = Case(folder / "published", name, *vectors.shape, arguments.device, arguments.max_build_minutes)
    case.folder.mkdir()
    np.save(case.folder / "items.npy", vectors)
    users = np.concatenate(list(draw_users(vectors, None, NUM_USERS, np.random.default_rng(SEED + 1)).values()))
    return with_users(case, users, users[:0])


def with_users(case: Case, users: np.ndarray, known: np.ndarray) -> Case:
    np.save(case.folder / "users.npy", users)
    np.save(case.folder / "known.npy", known)
    in_own_process(save_truth, case)
    return case


def save_truth(case: Case) -> None:
    index = build_index(case.vectors())
    _, rows = index.search(case.array("users"), 100)
    np.save(case.folder / "truth.npy", rows)
    users = case.array("users")
    _, rows = index.search(users[:BATCH], K, None, [eligible_rows(case)] * BATCH)
    np.save(case.folder / "truth_eligible.npy", rows)


def eligible_rows(case: Case) -> np.ndarray:
    return np.flatnonzero(np.random.default_rng(SEED).random(case.num_items) < ELIGIBLE_SHARE)


def row(case: Case, kind: Kind, before: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everything about one kind at one size, or why it is left out."""
    known = {"vectors": case.name, "items": case.num_items, "width": case.width, "kind": kind}
    if why := reason_to_leave_out(case, kind, before):
        return {**known, "left_out": why}
    folder = case.folder / kind
    folder.mkdir()
    facts, build_gib = in_own_process(build, case, folder, kind)
    served = in_own_process(serve, case, folder, facts)
    for path in folder.iterdir():
        path.unlink()
    stored = {"build_s": facts["seconds"], "build_gib": build_gib, "bytes_per_item": facts["bytes"] / case.num_items}
    return {**known, **stored, **served, "facts": facts}


def reason_to_leave_out(case: Case, kind: Kind, before: Sequence[dict[str, Any]]) -> str | None:
    """Never for what `auto` chooses. Builds grow a little faster than the number of items, so the size before tells."""
    if kind in ("exact", choose_kind(case.num_items, case.width)):
        return None
    if case.num_items < MIN_ITEMS:
        return "too few items"
    held_gib = case.num_items * case.width * 4 / 2**30
    if kind == "ivf-flat" and held_gib > MAX_HELD_GIB:
        return f"left out: its build would hold {held_gib:.1f} GiB of codes in memory"
    same = [r for r in before if (r["vectors"], r["kind"]) == (case.name, kind)]
    if same and "build_s" not in same[-1]:
        return "left out, as at the size before"
    expected_s = same[-1]["build_s"] * (case.num_items / same[-1]["items"]) ** 1.1 if same else 0
    if expected_s > 60 * case.max_build_minutes:
        return f"left out: its build would take about {expected_s / 60:.0f} minutes"
    return None


def build(case: Case, folder: Path, kind: Kind) -> tuple[dict[str, Any], float]:
    facts = write_index(folder, case.vectors(), kind, DEFAULT_MIN_RECALL, case.array("known"), SEED)
    return facts, memory_gib()["own_gib"]


def serve(case: Case, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Load an index as the service does, and search it."""
    users, truth = case.array("users"), case.array("truth")
    vectors = case.vectors()
    start = time.perf_counter()
    index = load_index(folder, vectors, case.device, facts)
    load_s = time.perf_counter() - start
    eligible = [eligible_rows(case)]
    batches = [
        users[start : start + BATCH] for start in range(0, len(users) - BATCH, (len(users) - BATCH) // NUM_BATCHES)
    ]
    index.search(users[:BATCH], K)
    few = users[:BATCH]
    return {
        "load_s": load_s,
        **percentiles("one", [lambda user=user: index.search(user[None], K) for user in users]),
        **percentiles("batch", [lambda batch=batch: index.search(batch, K) for batch in batches]),
        **percentiles("eligible", [lambda user=user: index.search(user[None], K, None, eligible) for user in few]),
        "recall@10": recall(index, users, truth, 10),
        "recall@100": recall(index, users, truth, 100),
        "eligible_recall@10": eligible_recall(case, index),
        **memory_gib(),
    }


def eligible_recall(case: Case, index: Any) -> float:
    _, rows = index.search(case.array("users")[:BATCH], K, None, [eligible_rows(case)] * BATCH)
    truth = case.array("truth_eligible")
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(rows, truth, strict=True)]))


def percentiles(name: str, calls: Sequence[Callable[[], Any]]) -> dict[str, float]:
    seconds = []
    for call in calls:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    p50, p99 = np.percentile(np.array(seconds) * 1e3, [50, 99])
    return {f"{name}_p50_ms": float(p50), f"{name}_p99_ms": float(p99)}


def memory_gib() -> dict[str, float]:
    """Resident memory of this process: its own, and mapped files."""
    status = dict(entry.split(":", 1) for entry in Path("/proc/self/status").read_text().splitlines())
    return {
        name: int(status[field].split()[0]) / 2**20
        for name, field in (("own_gib", "RssAnon"), ("mapped_gib", "RssFile"))
    }


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def checks(rows: Sequence[dict[str, Any]]) -> list[Any]:
    """What `auto` gives on vectors like trained ones; recall also on hard ones."""
    found = []
    for r in rows:
        name = f"{r['vectors']}, {r['items']:,} items, {r['kind']}"
        is_auto = r["kind"] == choose_kind(r["items"], r["width"])
        if "left_out" in r or not (is_auto or r["kind"] == "ivf-sq8"):
            continue
        least = 1.0 if r["kind"] == "exact" else DEFAULT_MIN_RECALL
        large = r["items"] > 5_000_000
        found.append(at_least(f"recall@10, {name}", r["recall@10"], MIN_RECALL_LARGE if large else least, ""))
        if r["vectors"] == "trained" and not large:
            found.append(at_most(f"p99 of one query, {name}", r["one_p99_ms"], MAX_P99_MS, "ms"))
        if large:
            resident = r["own_gib"] + r["mapped_gib"]
            found.append(at_most(f"resident memory, {name}", resident, MAX_RESIDENT_GIB, "GiB"))
    return found


HEADER = (
    f"{'vectors':10}{'items':>11} {'kind':10}{'build s':>9}{'B/item':>8}{'load s':>8}{'p50 ms':>8}{'p99':>8}"
    f"{'64: p50':>9}{'p99':>8}{'r@10':>8}{'r@100':>8}{'10%: p50':>10}{'r@10':>8}{'own GiB':>9}{'mapped':>8}"
)


def line(r: dict[str, Any]) -> str:
    start = f"{r['vectors'][:9]:10}{r['items']:>11,} {r['kind']:10}"
    if "left_out" in r:
        return f"{start}{r['left_out']}"
    return (
        f"{start}{r['build_s']:9.1f}{r['bytes_per_item']:8.0f}{r['load_s']:8.3f}{r['one_p50_ms']:8.2f}"
        f"{r['one_p99_ms']:8.2f}{r['batch_p50_ms']:9.1f}{r['batch_p99_ms']:8.1f}{r['recall@10']:8.4f}"
        f"{r['recall@100']:8.4f}{r['eligible_p50_ms']:10.2f}{r['eligible_recall@10']:8.4f}{r['own_gib']:9.2f}"
        f"{r['mapped_gib']:8.2f}"
    )


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The cost curve: time of a query, time to build, and bytes, by number of items; vectors like trained ones."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        "one_p50_ms": "one query, p50 and p99, ms",
        "build_s": "build, s",
        "bytes_per_item": "index, bytes an item",
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 4), layout="constrained")
    shown = [r for r in rows if r["vectors"] == "trained" and "left_out" not in r]
    for axis, (field, title) in zip(axes, panels.items(), strict=True):
        for colour, kind in enumerate(dict.fromkeys(r["kind"] for r in shown)):
            points = [r for r in shown if r["kind"] == kind and r[field] > 0]
            items = [r["items"] for r in points]
            axis.plot(items, [r[field] for r in points], "o-", color=f"C{colour}", label=kind)
            if field == "one_p50_ms":
                axis.plot(items, [r["one_p99_ms"] for r in points], ":", color=f"C{colour}")
        axis.set(title=title, xscale="log", xlabel="items")
        axis.set_yscale("linear" if field == "bytes_per_item" else "log")
        axis.grid(alpha=0.3)
    axes[0].axhline(MAX_P99_MS, color="grey", linewidth=1, linestyle="--")
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())

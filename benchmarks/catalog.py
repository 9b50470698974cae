"""What a large catalog costs to start with, and to ask: seconds, memory, and the latency of every kind of look-up.

    python -m benchmarks.catalog [--quick] [--json PATH] [--items 10000000] [--scratch FOLDER]

A synthetic catalog is written (3 KB an item, 4 while it is written) and deleted at the end, or kept in --scratch for
the next run. A fresh process loads it with its files thrown out of the page cache, a second one right after. Memory is
that process's own, imports included: `anonymous` must stay in memory, `mapped` are pages of files that the system may
take back.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.catalog_contents import (
    FEATURE_WIDTHS,
    MIN_RECALL,
    NUM_CATEGORIES,
    VECTOR_WIDTH,
    brand_name,
    category_name,
    num_brands,
    write_catalog,
)
from benchmarks.index_vectors import World
from benchmarks.report import Check, Report, at_least, at_most, benchmark_parser, finish
from model.artifacts import MANIFEST, read_manifest
from model.catalog import Catalog
from model.index import load_index
from service.items import list_items
from service.schemas import ItemsQuery

GIB = 2**30
NUM_ASKED = 2_000
"""Look-ups of every kind."""
NUM_USERS = 200
NUM_USERS_IN_RECALL = 100
K = 10
ROWS_A_BLOCK = 65_536


def main() -> int:
    parser = benchmark_parser(__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=10_000_000, help="items of the catalog (default: 10,000,000)")
    parser.add_argument("--scratch", type=Path, help="keep the catalog here, and use the one that is here")
    parser.add_argument("--measure", type=Path, metavar="VERSION", help="load this version and print what it costs")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return 0
    num_items = 400_000 if arguments.quick else arguments.items
    report = Report("catalog", 0, {"items": num_items, "vector_width": VECTOR_WIDTH, "feature_widths": FEATURE_WIDTHS})
    with tempfile.TemporaryDirectory(prefix="catalog-") as temporary:
        folder = (arguments.scratch or Path(temporary)) / f"synthetic-{num_items}"
        if not (folder / MANIFEST).exists():
            write_catalog(folder, num_items, report.seed)
        manifest = read_manifest(folder, verify=False)
        num_bytes = sum(file["bytes"] for file in manifest["files"].values())
        report.settings |= {"index": manifest["index"], "bytes": num_bytes}
        report.rows = [{"start": start, **fresh_process(folder, cold=start == "cold")} for start in ("cold", "warm")]
    print(table(report))
    report.checks = checks(report.rows)
    return finish(report, arguments.json)


def checks(rows: list[dict[str, Any]]) -> list[Check]:
    """The bounds are the same for any number of items; of the anonymous memory, 0.125 GiB are for recent filters."""
    cold, warm = rows
    return [
        at_most("start, files not in the page cache", cold["load_s"], 60, "s"),
        at_most("start, files in the page cache", warm["load_s"], 20, "s"),
        at_most("anonymous memory added by the catalog without its index", warm["catalog_anonymous_gib"], 0.25, "GiB"),
        at_most("all memory after every kind of request", warm["searched"]["rss_gib"], 24, "GiB"),
        at_most("p99 of finding a row by its id", warm["row of an id"]["p99_us"], 500, "us"),
        at_most("p99 of a page of 200 items", warm["page of 200 items"]["p99_us"], 20_000, "us"),
        at_most("p99 of a filter by one category", warm["one category"]["p99_us"], 500, "us"),
        at_least(f"recall@{K} of the index", warm["recall"], MIN_RECALL, ""),
    ]


def fresh_process(folder: Path, *, cold: bool) -> dict[str, Any]:
    """What `measure` says in a process of its own."""
    if cold:
        forget_pages(folder)
    command = [sys.executable, "-m", "benchmarks.catalog", "--measure", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(folder: Path) -> dict[str, Any]:
    """Load a catalog, ask it everything, and say how long each took and what memory it left."""
    row: dict[str, Any] = {"imported": memory()}
    row["load_s"], catalog = timed(lambda: Catalog.load(folder))
    row["loaded"] = memory()
    row |= {name: latency(calls) for name, calls in requests(catalog).items()}
    row["asked"] = memory()
    users = World(VECTOR_WIDTH).users(NUM_USERS)
    row["search for one user"] = latency(lambda user=user: catalog.index.search(user[None], K) for user in users)
    row["searched"] = memory()
    few = users[:NUM_USERS_IN_RECALL]
    found = catalog.index.search(few, K)[1]
    row["recall"] = share_found(found, best_rows(catalog.item_vectors, few, K))
    row["index_anonymous_gib"] = index_anonymous_gib(catalog)
    added = row["asked"]["anonymous_gib"] - row["imported"]["anonymous_gib"]
    row["catalog_anonymous_gib"] = round(added - row["index_anonymous_gib"], 4)
    return row


def requests(catalog: Catalog) -> dict[str, Iterable[Callable[[], object]]]:
    """Calls of every kind, each with arguments drawn anew."""
    generator = np.random.default_rng(1)

    def draw(high: int, num: int = NUM_ASKED) -> list[int]:
        drawn: list[int] = generator.integers(0, high, num).tolist()
        return drawn

    def names(name: Callable[[int], str], high: int, num: int) -> list[frozenset[str]]:
        return [frozenset(map(name, draw(high, num))) for _ in range(NUM_ASKED // 10)]

    nothing: frozenset[str] = frozenset()
    of_one, of_twenty = (names(category_name, NUM_CATEGORIES, num) for num in (1, 20))
    brands = names(brand_name, num_brands(catalog.num_items), 3)
    cursors = [None, *(page_cursor(catalog, row) for row in draw(catalog.num_items - 200, NUM_ASKED // 10))]
    return {
        "row of an id": [lambda at=at: catalog.row(f"B{at:09d}") for at in draw(catalog.num_items)],
        "row of an unknown id": [lambda at=at: catalog.row(f"X{at:09d}") for at in draw(catalog.num_items)],
        "id of a row": [lambda row=row: catalog.item_id(row) for row in draw(catalog.num_items)],
        "item": [lambda row=row: catalog.item(row) for row in draw(catalog.num_items)],
        "page of 200 items": [
            lambda cursor=cursor: list_items(catalog, ItemsQuery(limit=200, cursor=cursor)) for cursor in cursors
        ],
        "one category": [lambda some=some: catalog.eligible_rows(some, nothing) for some in of_one],
        "twenty categories": [lambda some=some: catalog.eligible_rows(some, nothing) for some in of_twenty],
        "twenty categories, three brands": [
            lambda some=some, of=of: catalog.eligible_rows(some, of) for some, of in zip(of_twenty, brands, strict=True)
        ],
        "a large category and a large brand": [
            lambda at=at: catalog.eligible_rows(frozenset({category_name(at)}), frozenset({brand_name(at)}))
            for at in range(NUM_ASKED // 100)
        ],
    }


def page_cursor(catalog: Catalog, row: int) -> str:
    """As `GET /items` gives it (service/items.py)."""
    return base64.urlsafe_b64encode(json.dumps([catalog.version, row]).encode()).decode()


def latency(calls: Iterable[Callable[[], object]]) -> dict[str, float]:
    """Microseconds of one call, one after the other, each for the first time."""
    microseconds = [1e6 * timed(call)[0] for call in calls]
    return {f"p{at}_us": round(float(np.percentile(microseconds, at)), 1) for at in (50, 99)}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def memory() -> dict[str, float]:
    """GiB of this process, by what the system may do with it."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kib = {name.strip(":"): int(size) for name, size, *_ in map(str.split, lines)}
    gib = {"rss": kib["Rss"], "anonymous": kib["Anonymous"], "mapped": kib["Rss"] - kib["Anonymous"]}
    return {f"{name}_gib": round(size * 1024 / GIB, 4) for name, size in gib.items()}


def index_anonymous_gib(catalog: Catalog) -> float:
    """What the index alone keeps in memory: how much a second copy of it adds."""
    before = memory()["anonymous_gib"]
    second = load_index(catalog.folder, catalog.item_vectors, facts=catalog.manifest["index"])
    added = memory()["anonymous_gib"] - before
    del second
    return added


def best_rows(vectors_NQ: npt.NDArray[np.float32], users_BQ: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """The true top k of every user, int64 [B, k], in one walk through the vectors."""
    scores_BK = np.full((len(users_BQ), k), -np.inf, np.float32)
    rows_BK = np.full((len(users_BQ), k), -1, np.int64)
    for start in range(0, len(vectors_NQ), ROWS_A_BLOCK):
        block = vectors_NQ[start : start + ROWS_A_BLOCK]
        scores = np.concatenate([scores_BK, users_BQ @ block.T], axis=1)
        rows = np.concatenate([rows_BK, np.tile(np.arange(start, start + len(block)), (len(users_BQ), 1))], axis=1)
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        scores_BK, rows_BK = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
    return rows_BK


def share_found(found_BK: npt.NDArray[np.int64], true_BK: npt.NDArray[np.int64]) -> float:
    hits = sum(len(np.intersect1d(found, true)) for found, true in zip(found_BK, true_BK, strict=True))
    return hits / true_BK.size


def forget_pages(folder: Path) -> None:
    """Throw the files below `folder` out of the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def table(report: Report) -> str:
    cold, warm = report.rows
    settings = report.settings
    lines = [
        f"{settings['items']:,} items, {settings['bytes'] / GIB:.1f} GiB on disk, index {settings['index']['kind']}"
    ]
    lines += [f"{'':34}{'cold':>12}{'warm':>12}", f"{'start, s':34}{cold['load_s']:>12.2f}{warm['load_s']:>12.2f}"]
    for moment in ("imported", "loaded", "asked", "searched"):
        for kind in ("anonymous", "mapped"):
            values = "".join(f"{row[moment][f'{kind}_gib']:>12.3f}" for row in report.rows)
            lines.append(f"{f'{kind} GiB, {moment}':34}{values}")
    for name in (name for name, value in warm.items() if isinstance(value, dict) and "p99_us" in value):
        lines += [
            f"{f'{name}, {at} us':34}{cold[name][f'{at}_us']:>12,.1f}{warm[name][f'{at}_us']:>12,.1f}"
            for at in ("p50", "p99")
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks.measured_service`: the real service, with a stopwatch in its event loop and around its engine.

The engine is free (it answers every query with the same items at once, or after a given time), or that of a store. The
service is set up by its environment, as ever; GET /measured answers with what was measured since it was last asked.
With the free engine nothing imports torch.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model.ranking import Query, RankedItem, Ranking, Signals
from model.store import Store
from service.__main__ import serve
from service.app import create_app
from service.protocols import Catalog, CatalogItem, PreparedQuery, Publications, Recommender
from service.settings import Settings
from service.stored import StoredCatalogs, freeze_what_stays

TICK_S = 0.001
NUM_FREE_ITEMS = 10_000
MAX_FREE_HISTORY = 10
TOKENS_PER_ITEM = 20


@dataclass
class Measured:
    """Since the last look. Milliseconds, one entry an event."""

    late_ms: list[float] = field(default_factory=list)
    """How much later than after a millisecond the event loop came round to the ticker."""
    blocked_ms: list[float] = field(default_factory=list)
    """What of that the service itself held it up by, be it by computing or by keeping the interpreter's lock: no more
    than its threads computed meanwhile, and nothing of the time in which the loop's thread waited for a core. The rest
    is the machine's, such as a hypervisor that gives the core to others."""
    collection_ms: list[float] = field(default_factory=list)
    """Garbage collections, which hold up every thread."""
    in_service_ms: list[float] = field(default_factory=list)
    """From a request's head to the last byte of its answer."""
    prepare_ms: list[float] = field(default_factory=list)
    batch_ms: list[float] = field(default_factory=list)
    gap_ms: list[float] = field(default_factory=list)
    """From the end of a batch to the beginning of the next: idle time of the device, when the line is never empty."""
    batch_requests: list[int] = field(default_factory=list)


@dataclass
class Stopwatch:
    """What all parts of the process note their times in; the process has one."""

    now: Measured = field(default_factory=Measured)
    batch_ended: float | None = None

    def watch_collections(self) -> None:
        started = 0.0

        def note(phase: str, _: dict[str, int]) -> None:
            nonlocal started
            if phase == "stop":
                self.now.collection_ms.append(1000 * (time.perf_counter() - started))
            started = time.perf_counter()

        gc.callbacks.append(note)

    def take(self) -> dict[str, Any]:
        """Percentiles of everything since the last call."""
        seen, self.now, self.batch_ended = self.now, Measured(), None
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {name: summary(values) for name, values in asdict(seen).items()} | {
            "processor_s": usage.ru_utime + usage.ru_stime
        }


def summary(values: Sequence[float]) -> dict[str, float]:
    """Count, mean, percentiles and maximum; of nothing, the count alone."""
    if not values:
        return {"count": 0}
    ordered = sorted(values)
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p999": 0.999, "max": 1.0}
    percentiles = {name: ordered[round(share * (len(ordered) - 1))] for name, share in shares.items()}
    return {"count": len(ordered), "mean": sum(ordered) / len(ordered), **percentiles}


class WatchedLoop:
    """Middleware: times requests, keeps a ticker in their event loop, and answers GET /measured."""

    def __init__(self, app: ASGIApp, stopwatch: Stopwatch) -> None:
        self._app = app
        self._stopwatch = stopwatch
        self._ticker: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._ticker is None:
            self._ticker = asyncio.create_task(self._tick())
        if scope["type"] == "http" and scope["path"] == "/measured":
            await self._answer(send)
            return
        started = time.perf_counter()
        await self._app(scope, receive, send)
        if scope["type"] == "http" and scope["path"] == "/recommend":
            self._stopwatch.now.in_service_ms.append(1000 * (time.perf_counter() - started))

    async def _tick(self) -> None:
        with Path("/proc/thread-self/schedstat").open("rb") as schedstat:
            while True:
                started, queued, computed = time.perf_counter(), _queued_s(schedstat.fileno()), time.process_time()
                await asyncio.sleep(TICK_S)
                late_s = time.perf_counter() - started - TICK_S
                own_s = late_s - _queued_s(schedstat.fileno()) + queued
                self._stopwatch.now.late_ms.append(1000 * late_s)
                self._stopwatch.now.blocked_ms.append(1000 * min(own_s, time.process_time() - computed))

    async def _answer(self, send: Send) -> None:
        body = json.dumps(self._stopwatch.take()).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        start: Message = {"type": "http.response.start", "status": 200, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": body})


def _queued_s(schedstat: int) -> float:
    """How long a thread has been ready to run without a core since its start; its second number (Linux)."""
    return int(os.pread(schedstat, 100, 0).split()[1]) / 1e9


class TimedRecommender:
    """Another recommender, timed."""

    def __init__(self, recommender: Recommender, stopwatch: Stopwatch) -> None:
        self._recommender = recommender
        self._stopwatch = stopwatch

    @property
    def catalog(self) -> Catalog:
        return self._recommender.catalog

    @property
    def checkpoint_id(self) -> str:
        return self._recommender.checkpoint_id

    def warm_up(self) -> None:
        self._recommender.warm_up()

    def prepare(self, query: Query) -> PreparedQuery:
        started = time.perf_counter()
        prepared = self._recommender.prepare(query)
        self._stopwatch.now.prepare_ms.append(1000 * (time.perf_counter() - started))
        return prepared

    def rank_prepared(self, prepared: Sequence[Any]) -> Sequence[Ranking]:
        started = time.perf_counter()
        rankings = self._recommender.rank_prepared(prepared)
        ended = time.perf_counter()
        measured = self._stopwatch.now
        if self._stopwatch.batch_ended is not None:
            measured.gap_ms.append(1000 * (started - self._stopwatch.batch_ended))
        measured.batch_ms.append(1000 * (ended - started))
        measured.batch_requests.append(len(prepared))
        self._stopwatch.batch_ended = ended
        return rankings


class TimedPublications:
    """Other publications, whose recommenders are timed."""

    def __init__(self, publications: Publications, stopwatch: Stopwatch) -> None:
        self._publications = publications
        self._stopwatch = stopwatch

    def current_version(self) -> str | None:
        return self._publications.current_version()

    def load(self, version: str, beside: Recommender | None) -> Recommender:  # noqa: ARG002 - nothing to share
        return TimedRecommender(self._publications.load(version, None), self._stopwatch)


@dataclass(frozen=True)
class FreeItem:
    item_id: str
    title: str = "A mug of stoneware, hand-thrown, with stripes in two blues"
    brand: str | None = "Kiln & Daughters"
    category: str | None = "Kitchen > Cups and mugs"
    description: str | None = None
    image_file: str | None = "ab/ab12.png"
    image_url: str | None = None

    @property
    def signals(self) -> dict[str, bool]:
        return {"image": True, "cf": True, "text": True}


class FreeCatalog:
    """Items whose id is their row."""

    version = "free"
    num_items = NUM_FREE_ITEMS

    def row(self, item_id: str) -> int | None:
        row = int(item_id) if item_id.isdecimal() else -1
        return row if 0 <= row < NUM_FREE_ITEMS else None

    def item(self, row: int) -> CatalogItem:
        return FreeItem(str(row))

    def eligible_rows(self, categories: frozenset[str], brands: frozenset[str]) -> None:
        """No query of the benchmark filters."""


@dataclass(frozen=True, eq=False)
class FreePrepared:
    query: Query
    num_tokens: int

    @property
    def key(self) -> Query:
        return self.query


@dataclass(frozen=True)
class FreeRecommender:
    """Recommends the same items to everybody. A batch takes no time, or `batch_s` in which the thread sleeps."""

    batch_s: float
    catalog: FreeCatalog = field(default_factory=FreeCatalog)
    checkpoint_id: str = "free"
    items: tuple[RankedItem, ...] = tuple(
        RankedItem(str(row), 10 - row / 16, "model", Signals(5 - row / 48, 3 - row / 48, 2 - row / 48))
        for row in range(100)
    )

    def warm_up(self) -> None:
        """Nothing to warm."""

    def prepare(self, query: Query) -> FreePrepared:
        known = sum(self.catalog.row(item_id) is not None for item_id in query.history)
        return FreePrepared(query, TOKENS_PER_ITEM * min(known, MAX_FREE_HISTORY))

    def rank_prepared(self, prepared: Sequence[FreePrepared]) -> list[Ranking]:
        if self.batch_s:
            time.sleep(self.batch_s)
        return [self._ranking(one) for one in prepared]

    def _ranking(self, prepared: FreePrepared) -> Ranking:
        return Ranking(
            items=self.items[: prepared.query.k],
            unknown_items=(),
            history_used=prepared.num_tokens // TOKENS_PER_ITEM,
            history_truncated=False,
            checkpoint=self.checkpoint_id,
            catalog_version=self.catalog.version,
        )


@dataclass(frozen=True)
class FreePublications:
    batch_s: float

    def current_version(self) -> str:
        return "free"

    def load(self, version: str, beside: Recommender | None) -> Recommender:  # noqa: ARG002 - free of everything
        freeze_what_stays()  # as with a store
        return FreeRecommender(self.batch_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="the engine of this store, instead of the free one")
    parser.add_argument("--batch-ms", type=float, default=0.0, help="how long a batch takes the free engine")
    parser.add_argument("--core", type=int, help="the one core to run on")
    parser.add_argument("--switch-ms", type=float, help="the interpreter's switch interval")
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    if arguments.switch_ms is not None:
        sys.setswitchinterval(arguments.switch_ms / 1000)
    settings, stopwatch = Settings(), Stopwatch()
    stopwatch.watch_collections()
    publications: Publications = FreePublications(arguments.batch_ms / 1000)
    if arguments.store is not None:
        publications = StoredCatalogs(Store(arguments.store), settings.device)
    app = create_app(settings, TimedPublications(publications, stopwatch))
    app.add_middleware(WatchedLoop, stopwatch=stopwatch)
    serve(settings, app)


if __name__ == "__main__":
    main()

"""`python -m benchmarks.http_overhead`: what HTTP, validation, batching and JSON cost; whether the event loop stalls.

The service runs as a process of its own on one core, the load generator on the others. With a free engine its whole
latency is overhead; with an engine that sleeps 5 ms a batch, the time between two batches is what the batcher loses;
with that of `--store`, where one is published, the event loop shares the interpreter with a thread that computes.
Histories have 10 items, answers 10; no two requests in a row are the same.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.load import Plan, run_load
from benchmarks.report import Check, Report, at_most, benchmark_parser, finish

RATE = 200.0
HISTORY_ITEMS = 10
NUM_BODIES = 1000
START_S = 120
CALLERS, STORE_CALLERS = 32, 16
SLOW_BATCH_MS = 5.0
MAX_P50_MS = 2.0
"""Acceptance of the serving engine: overhead at 200 requests/s on one core."""
MAX_BLOCK_MS = 10.0
"""Acceptance of the serving engine: the event loop is never held up for longer."""
MAX_GAP_MS = 1.0
"""A twentieth of a batch of 20 ms, the shortest that a language model is likely to take."""
COLUMNS = (
    "engine",
    "load",
    "requests/s",
    "client p50",
    "p95",
    "p99",
    "in service p50",
    "p99",
    "blocked p99",
    "max",
    "late max",
    "gap p50",
    "cpu ms/request",
)


@dataclass(frozen=True)
class Service:
    """A measured service that is ready."""

    client: httpx.Client
    item_ids: Sequence[str]

    def bodies(self, seed: int, **fields: Any) -> list[str]:
        generator = np.random.default_rng(seed)
        histories = (generator.choice(self.item_ids, HISTORY_ITEMS, replace=False) for _ in range(NUM_BODIES))
        return [json.dumps({"history": list(map(str, history)), "k": 10, **fields}) for history in histories]

    def measured(self) -> dict[str, Any]:
        """What was measured since the last call (benchmarks/measured_service.py)."""
        seen: dict[str, Any] = self.client.get("/measured").raise_for_status().json()
        return seen


@dataclass(frozen=True)
class Bench:
    """Runs loads and collects rows."""

    report: Report
    seconds: float
    server_core: int | None
    load_cores: frozenset[int]

    def free(self) -> None:
        with self._service("--core", self.server_core) as service:
            self._idle("free", service)
            self._row("free", f"{RATE:g}/s", service, rate=RATE)
            fields = ["title", "brand", "category", "image_url"]
            self._row("free", f"{RATE:g}/s, all fields", service, rate=RATE, include=fields)
            self._row("free", f"{CALLERS} callers", service, callers=CALLERS)

    def slow(self) -> None:
        with self._service("--core", self.server_core, "--batch-ms", SLOW_BATCH_MS) as service:
            self._row("5 ms a batch", f"{CALLERS} callers", service, callers=CALLERS)

    def store(self, store: Path) -> None:
        """Unpinned: the engine has all cores, as in production."""
        with self._service("--store", store) as service:
            self._idle("store", service)
            row = self._row("store", f"{STORE_CALLERS} callers", service, callers=STORE_CALLERS)
            self._row("store", "half of that", service, rate=row["requests/s"] / 2)

    def _row(self, engine: str, load: str, service: Service, *, include: Sequence[str] = (), **how: Any) -> Any:
        url = str(service.client.base_url.join("/recommend"))
        bodies = service.bodies(self.report.seed, include=list(include))
        self._run(Plan(url, bodies[::-1], max(1.0, self.seconds / 10), **how))  # connections, caches, the pace
        before = service.measured()
        outcome = self._run(Plan(url, bodies, self.seconds, seed=self.report.seed, **how))
        measured = service.measured()
        num = len(outcome.status)
        processor_s = measured["processor_s"] - before["processor_s"]
        row = {
            "engine": engine,
            "load": load,
            "requests/s": num / (max(due + took for due, took in zip(outcome.due_s, outcome.latency_s, strict=True))),
            "not answered": num - outcome.num_ok,
            "client_ms": dict(zip(("p50", "p95", "p99"), outcome.latency_ms(50, 95, 99), strict=True)),
            "sent_late_ms": {"p99": float(np.percentile(outcome.late_s, 99)) * 1000},
            "processor_ms_per_request": 1000 * processor_s / num,
            **measured,
        }
        self._add(row)
        return row

    def _idle(self, engine: str, service: Service) -> None:
        """The ticker without requests: what the machine itself does to it."""
        service.measured()
        time.sleep(max(2.0, self.seconds / 4))
        self._add({"engine": engine, "load": "none", **service.measured()})

    def _add(self, row: dict[str, Any]) -> None:
        self.report.rows.append(row)
        print(line(row), flush=True)

    def _run(self, plan: Plan) -> Any:
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.load_cores)  # the generator's process inherits it
        try:
            return run_load(plan)
        finally:
            os.sched_setaffinity(0, own)

    @contextmanager
    def _service(self, *options: object) -> Iterator[Service]:
        command = [sys.executable, "-m", "benchmarks.measured_service", *(str(o) for o in options if o is not None)]
        port = free_port()
        with tempfile.TemporaryFile() as log:
            environment = {**os.environ, "RECOMMENDER_PORT": str(port)}
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: S603
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=START_S) as client:
                    wait_until_ready(client, process)
                    page = client.get("/items", params={"limit": 200}).raise_for_status().json()
                    yield Service(client, [item["item_id"] for item in page["items"]])
            except BaseException:
                log.seek(0)
                sys.stderr.write(log.read().decode()[-5000:])
                raise
            finally:
                process.terminate()
                process.wait(30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.get("/health/ready").status_code == httpx.codes.OK:
                return
        except httpx.ConnectError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the service did not become ready; the end of its log is above")


def line(row: dict[str, Any]) -> str:
    """A row of the table; milliseconds unless the column says otherwise."""

    def at(name: str, part: str) -> str:
        value = row.get(name, {}).get(part)
        return "" if value is None else f"{value:.2f}"

    cells = [
        row["engine"],
        row["load"],
        f"{row['requests/s']:.0f}" if "requests/s" in row else "",
        *(at("client_ms", part) for part in ("p50", "p95", "p99")),
        *(at("in_service_ms", part) for part in ("p50", "p99")),
        *(at("blocked_ms", part) for part in ("p99", "max")),
        at("late_ms", "max"),
        at("gap_ms", "p50") if "callers" in row["load"] else "",
        f"{row['processor_ms_per_request']:.2f}" if "processor_ms_per_request" in row else "",
    ]
    return table_line(cells)


def table_line(cells: Sequence[str]) -> str:
    widths = (12, 20, *(max(len(name), 7) for name in COLUMNS[2:]))
    return "  ".join(
        cell.ljust(w) if at < 2 else cell.rjust(w) for at, (cell, w) in enumerate(zip(cells, widths, strict=True))
    )


def checks(rows: Sequence[dict[str, Any]]) -> list[Check]:
    """The acceptance, over all rounds: the median of the latency; the longest block of every round and, of those, the
    median, since on a shared machine any one round may be the machine's; the worst of everything else."""
    loaded = [row for row in rows if row["load"] != "none"]
    plain = [row for row in loaded if (row["engine"], row["load"]) == ("free", f"{RATE:g}/s")]
    slow = [row for row in loaded if row["engine"] == "5 ms a batch"]
    p50_ms = float(np.median([row["client_ms"]["p50"] for row in plain]))
    found = [
        at_most(f"client latency p50 with a free engine at {RATE:g} requests/s", p50_ms, MAX_P50_MS, "ms"),
        at_most("gap between batches p50", max(row["gap_ms"]["p50"] for row in slow), MAX_GAP_MS, "ms"),
        at_most("requests without an answer", sum(row["not answered"] for row in loaded), 0, "requests"),
    ]
    for engine in dict.fromkeys(row["engine"] for row in loaded):
        loads = dict.fromkeys(row["load"] for row in loaded if row["engine"] == engine)
        blocked_ms = max(median_block_ms(rows, engine, load) for load in loads)
        found.append(at_most(f"longest block of the event loop in a round, {engine}", blocked_ms, MAX_BLOCK_MS, "ms"))
    return found


def median_block_ms(rows: Sequence[dict[str, Any]], engine: str, load: str) -> float:
    longest = [row["blocked_ms"]["max"] for row in rows if (row["engine"], row["load"]) == (engine, load)]
    return float(np.median(longest))


def main() -> int:
    arguments = benchmark_parser(__doc__).parse_args()
    cores = sorted(os.sched_getaffinity(0))
    seconds, rounds = (3.0, 1) if arguments.quick else (10.0, 3)
    settings = {"seconds": seconds, "rounds": rounds, "rate": RATE, "history": HISTORY_ITEMS, "k": 10}
    report = Report("http_overhead", seed=0, settings=settings | {"load_average": os.getloadavg()[0]})
    bench = Bench(report, seconds, cores[0] if len(cores) > 1 else None, frozenset(cores[1:] or cores))
    has_store = (arguments.store / "catalogs" / "CURRENT").exists()
    print(table_line(COLUMNS))
    for _ in range(rounds):
        bench.free()
        bench.slow()
        if has_store:
            bench.store(arguments.store)
    if not has_store:
        print(f"no catalog is published in {arguments.store}: the event loop beside a real engine was not measured")
    report.checks.extend(checks(report.rows))
    return finish(report, arguments.json)


if __name__ == "__main__":
    sys.exit(main())

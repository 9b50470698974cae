"""The pure parts of benchmarks/http_overhead.py, and its service with the free engine in this process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import running

from benchmarks.http_overhead import MAX_BLOCK_MS, RATE, checks, line
from benchmarks.measured_service import FreePublications, Stopwatch, TimedPublications, WatchedLoop, summary
from service.app import create_app
from service.settings import Settings


def row(engine: str, load: str, *, p50: float = 1.0, blocked: float = 1.0, lost: int = 0) -> dict[str, Any]:
    times = {"p50": p50, "p95": 3.0, "p99": 4.0, "max": 9.0}
    return {
        "engine": engine,
        "load": load,
        "client_ms": times,
        "blocked_ms": {"p99": 0.5, "max": blocked},
        "gap_ms": times,
        "not answered": lost,
    }


GOOD = [row("free", f"{RATE:g}/s"), row("5 ms a batch", "64 callers"), row("store", "16 callers")]


def failing(*rows: dict[str, Any]) -> list[str]:
    return [check.name for check in checks([*GOOD, *rows]) if not check.holds]


def test_the_acceptance_holds_for_good_rows() -> None:
    assert failing() == []


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        (row("free", f"{RATE:g}/s", p50=4.0), "client latency p50 with a free engine at 200 requests/s"),
        (row("store", "9/s", blocked=MAX_BLOCK_MS + 1), "longest block of the event loop in a round, store"),
        (row("free", "32 callers", lost=1), "requests without an answer"),
        (row("5 ms a batch", "64 callers", p50=1.1), "gap between batches p50"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_row_fails_its_check(bad: dict[str, Any], name: str) -> None:
    assert failing(bad) == [name]


def test_one_round_that_the_machine_held_up_fails_nothing_and_two_of_three_do() -> None:
    bad = row("store", "16 callers", blocked=MAX_BLOCK_MS + 1)
    assert failing(GOOD[-1], bad) == []
    assert failing(bad, bad) == ["longest block of the event loop in a round, store"]


def test_an_idle_row_is_no_load() -> None:
    assert failing({"engine": "free", "load": "none", "blocked_ms": {"max": 99.0}}) == []
    assert "99.00" in line({"engine": "free", "load": "none", "blocked_ms": {"max": 99.0}})


def test_a_summary_counts_and_ranks() -> None:
    found = summary([float(n) for n in range(1001)])
    assert (found["count"], found["mean"], found["p50"], found["p99"], found["max"]) == (1001, 500, 500, 990, 1000)
    assert summary([3.0])["p99"] == 3
    assert summary([]) == {"count": 0}


async def test_the_free_service_measures_its_requests_and_its_event_loop(tmp_path: Path) -> None:
    stopwatch = Stopwatch()
    publications = TimedPublications(FreePublications(batch_s=0.0), stopwatch)
    app = create_app(Settings(store=tmp_path, catalog_poll_s=0.01), publications)
    app.add_middleware(WatchedLoop, stopwatch=stopwatch)
    async with running(app) as client:
        while (await client.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.01)
        answer = await client.post("/recommend", json={"history": ["1", "2"], "include": ["title"]})
        time.sleep(0.03)  # holds up the event loop
        await asyncio.sleep(0.005)
        measured = (await client.get("/measured")).json()
        nothing = (await client.get("/measured")).json()
    assert (answer.status_code, len(answer.json()["items"]), answer.json()["history_used"]) == (200, 10, 2)
    counts = [measured[name]["count"] for name in ("in_service_ms", "prepare_ms", "batch_ms")]
    assert counts == [1, 1, 1]
    assert measured["blocked_ms"]["max"] > 20
    assert nothing["in_service_ms"]["count"] == 0


def test_the_free_service_does_without_the_models_libraries() -> None:
    code = "import sys, benchmarks.measured_service; sys.exit(bool({'torch', 'faiss', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0

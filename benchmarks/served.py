"""A system under measurement as a real service process that keeps a record of its batches.

`Served` starts the process and talks to it; `python -m benchmarks.served SYSTEM --store PATH` is that process. Every
system runs behind the same HTTP service and batcher; the record costs a few microseconds a request for all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection
from logging.config import dictConfig
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import uvicorn

from benchmarks.rivals import Naive, Padded
from model.catalog import current_version
from model.index_kinds import one_thread
from model.ranking import Query, Ranking
from model.recommender import Recommender
from model.store import Store
from service import protocols
from service.app import create_app
from service.logs import log_config
from service.settings import Settings
from service.stored import SPIN_COUNT, freeze_what_stays

OURS, PADDED, NAIVE, NAIVE_WITHOUT_HEAD = "ours", "padded", "naive", "naive-without-head"
SYSTEMS: dict[str, Callable[..., protocols.Recommender]] = {
    NAIVE: Naive,
    NAIVE_WITHOUT_HEAD: lambda *place: Naive(*place, head=False),
    PADDED: Padded,
    OURS: Recommender.load,
}
START_S = 300


@dataclass(frozen=True)
class Batch:
    """One call of `rank_prepared`. Times are those of the monotonic clock, which all processes of a machine share."""

    start_s: float
    end_s: float
    num_requests: int
    num_tokens: int
    """As the batcher counts them."""
    queue_s: float
    """Sum over its requests of the time between arrival and start."""
    cpu_s: float
    """Processor time of the whole server process until the end of the batch."""
    stage_s: dict[str, float] = field(default_factory=dict)
    """Time in each stage since the server's start, where the system counts it."""


def steady_state(batches: Sequence[Batch], seconds: float) -> dict[str, Any]:
    """What a saturated server did from the end of its second batch to that of its last within `seconds`.

    The first batch holds whoever came first, and after `seconds` nobody new comes. Raises ValueError when fewer than
    three batches remain.
    """
    inside = [batch for batch in batches if batch.end_s <= batches[0].start_s + seconds][1:]
    if len(inside) < 2:
        raise ValueError(f"{len(batches)} batches in {seconds:g} s are too few to measure: load the server for longer")
    first, counted = inside[0], inside[1:]
    wall_s = counted[-1].end_s - first.end_s
    num_requests = sum(batch.num_requests for batch in counted)
    stages = {
        name: 1000 * (total_s - first.stage_s.get(name, 0.0)) / num_requests
        for name, total_s in counted[-1].stage_s.items()
    }
    return {
        "requests/s": num_requests / wall_s,
        "batches": len(counted),
        "requests_per_batch": num_requests / len(counted),
        "batch_ms": 1000 * sum(batch.end_s - batch.start_s for batch in counted) / len(counted),
        "queue_ms": 1000 * sum(batch.queue_s for batch in counted) / num_requests,
        "device_busy": sum(batch.end_s - batch.start_s for batch in counted) / wall_s,
        "cores": (counted[-1].cpu_s - first.cpu_s) / wall_s,
        "stage_ms_per_request": stages,
    }


class Served:
    """A running server of one system. Use in a `with` statement."""

    def __init__(self, system: str, store: Path, max_batch_tokens: int, device: str = "auto") -> None:
        options = ["--store", str(store), "--max-batch-tokens", str(max_batch_tokens), "--device", device]
        command = [sys.executable, "-m", "benchmarks.served", system, *options]
        environment = {"GOMP_SPINCOUNT": SPIN_COUNT} | os.environ
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)  # noqa: S603

    def __enter__(self) -> Self:
        assert self._process.stdout is not None  # noqa: S101 - narrows for the type checker
        address = self._process.stdout.readline().strip()
        if not address:
            raise RuntimeError(f"the server ended with status {self._process.wait()} before it listened")
        self._client = httpx.Client(base_url=address, timeout=START_S)
        self._connection = HTTPConnection(address.removeprefix("http://"), timeout=START_S)
        self.url = f"{address}/recommend"
        self._wait_until_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()
        self._connection.close()
        self._process.terminate()
        self._process.communicate()

    def batches(self) -> list[Batch]:
        """All batches since the start."""
        return [Batch(**batch) for batch in self._client.get("/benchmark/batches").raise_for_status().json()]

    def ask(self, body: str) -> tuple[list[str], float]:
        """The recommended item ids, and the seconds that the answer took on a kept-alive connection."""
        start = time.perf_counter()
        self._connection.request("POST", "/recommend", body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        content = response.read()
        seconds = time.perf_counter() - start
        if response.status != HTTPStatus.OK:
            raise RuntimeError(f"the server answered {response.status}: {content!r}")
        return [item["item_id"] for item in json.loads(content)["items"]], seconds

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._client.get("/health/ready").status_code == HTTPStatus.OK:
                return
            time.sleep(0.05)
        raise RuntimeError("the server does not become ready; its log is above")


@dataclass(frozen=True, eq=False)
class _Arrived:
    """What a system prepared, and when."""

    prepared: protocols.PreparedQuery
    at_s: float

    @property
    def num_tokens(self) -> int:
        return self.prepared.num_tokens

    @property
    def key(self) -> Hashable:
        return self.prepared.key


class Recorded:
    """A recommender that keeps a record of its batches."""

    def __init__(self, recommender: protocols.Recommender) -> None:
        self._recommender = recommender
        self.batches: list[Batch] = []

    @property
    def catalog(self) -> protocols.Catalog:
        return self._recommender.catalog

    @property
    def checkpoint_id(self) -> str:
        return self._recommender.checkpoint_id

    def warm_up(self) -> None:
        self._recommender.warm_up()

    def prepare(self, query: Query) -> _Arrived:
        at_s = time.monotonic()
        return _Arrived(self._recommender.prepare(query), at_s)

    def rank_prepared(self, arrived: Sequence[_Arrived]) -> Sequence[Ranking]:
        start_s = time.monotonic()
        rankings = self._recommender.rank_prepared([one.prepared for one in arrived])
        batch = Batch(
            start_s=start_s,
            end_s=time.monotonic(),
            num_requests=len(arrived),
            num_tokens=sum(one.num_tokens for one in arrived),
            queue_s=sum(start_s - one.at_s for one in arrived),
            cpu_s=time.process_time(),
            stage_s=dict(getattr(self._recommender, "stage_s", {})),
        )
        self.batches.append(batch)
        return rankings


class _OneCatalog:
    """Publications of a store that does not change, ranked by one system."""

    def __init__(self, system: str, store: Store, device: str) -> None:
        self._system = system
        self._place = (store, current_version(store.catalogs), device)
        self.recorded: Recorded | None = None

    def current_version(self) -> str | None:
        return self._place[1]

    def load(self, *_: object) -> protocols.Recommender:
        with one_thread():  # this, the spin count and the collector: as the service does with ours
            self.recorded = Recorded(SYSTEMS[self._system](*self._place))
        freeze_what_stays()
        return self.recorded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--max-batch-tokens", type=int, required=True)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    # A saturated server must neither refuse nor give up: what is measured is how fast it answers.
    settings = Settings(
        store=arguments.store,
        device=arguments.device,
        log_level="WARNING",
        max_batch_tokens=arguments.max_batch_tokens,
        max_batch_requests=1 if arguments.system.startswith(NAIVE) else 1024,
        max_line=100_000,
        request_timeout_s=3600,
    )
    dictConfig(log_config(settings.log_level))
    publications = _OneCatalog(arguments.system, Store(settings.store), settings.device)
    app = create_app(settings, publications)

    @app.get("/benchmark/batches", include_in_schema=False)
    async def batches() -> list[dict[str, Any]]:
        return [asdict(batch) for batch in publications.recorded.batches] if publications.recorded else []

    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_keep_alive=START_S)).run(
            [listening]
        )


if __name__ == "__main__":
    main()

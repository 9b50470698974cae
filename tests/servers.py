"""The service as a process of its own, and clients that keep it busy."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
START_S = 60


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30)


@contextmanager
def served(store: Path, command: tuple[str, ...] = ("tests/fakes.py",), **environment: str) -> Iterator[Server]:
    """Start the service on a free port; at the end it must stop by itself on SIGTERM."""
    log = store / "service.log"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "RECOMMENDER_STORE": str(store), "RECOMMENDER_PORT": "0"}
    variables |= {"RECOMMENDER_CATALOG_POLL_S": "0.05", **environment}
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=variables, stdout=output, stderr=output)
    try:
        yield Server(process, address_in(log, process), log)
        process.terminate()
        process.wait(20)
    finally:
        process.kill()
        process.wait()


def address_in(log: Path, process: subprocess.Popen[bytes]) -> str:
    """The address that the server logs once it listens."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if "http://" in line:
                return "http://" + line.split("http://")[1].split(" ")[0]
        time.sleep(0.02)
    raise AssertionError(f"the service did not start:\n{log.read_text()}")


def wait_for_version(client: httpx.Client, version: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        response = client.get("/health/ready")
        if response.status_code == 200 and response.json()["catalog_version"] == version:
            return
        time.sleep(0.02)
    raise AssertionError(f"version {version} is not served: {response.text}")


async def load_while(
    url: str, request: dict[str, Any], work: Callable[[], object], num_callers: int = 8
) -> list[httpx.Response]:
    """Every answer that callers got who kept sending `request` until `work` was done."""
    done = asyncio.Event()
    answers: list[httpx.Response] = []

    async def keep_asking(client: httpx.AsyncClient) -> None:
        while not done.is_set():
            answers.append(await client.post("/recommend", json=request))

    async with httpx.AsyncClient(base_url=url, timeout=30) as client, asyncio.TaskGroup() as group:
        for _ in range(num_callers):
            group.create_task(keep_asking(client))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(work)
        await asyncio.sleep(0.1)
        done.set()
    return answers

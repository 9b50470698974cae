"""Load on an HTTP service from a process of its own: open-loop Poisson arrivals, or callers who wait for each answer.

Open loop means that a request is sent when it is due, however slow the answers are, and that its latency counts from
that moment: a server that stalls is charged for every request that came meanwhile. Closed loop finds saturation.
Knows nothing of what is asked. `run_load(plan)` starts the process; `python -m benchmarks.load` is that process.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

LOST = 0
"""Status of a request that no whole answer came to."""


@dataclass(frozen=True)
class Plan:
    """What to send. Exactly one of `rate` and `callers` is set."""

    url: str
    """Whole address of the route; plain HTTP."""
    bodies: Sequence[str]
    """JSON bodies, used in turn, over again when they are used up."""
    seconds: float
    """How long requests are sent; those under way at the end are waited for."""
    rate: float | None = None
    """Open loop: requests/s on average."""
    callers: int | None = None
    """Closed loop: how many ask, each its next request as soon as it has its answer."""
    seed: int = 0
    """Of the arrival times."""
    patience_s: float = 60.0
    """How long after the end an answer is waited for."""
    header: str = ""
    """Response header whose values are wanted, such as `Server-Timing`."""

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.callers is None):
            raise ValueError(f"rate is {self.rate} and callers is {self.callers}: give one of them")


@dataclass(frozen=True)
class Outcome:
    """One entry a request in every list, in the order of sending; times in seconds from the beginning of the run."""

    due_s: list[float] = field(default_factory=list)
    """When it had to be sent."""
    late_s: list[float] = field(default_factory=list)
    """How much later it was sent, which is the load generator's fault; part of the latency all the same."""
    latency_s: list[float] = field(default_factory=list)
    """From when it was due until its answer was whole; for a lost one, until it was given up."""
    status: list[int] = field(default_factory=list)
    header: list[str] = field(default_factory=list)

    def sent(self, due_s: float, late_s: float) -> None:
        """Note a request as lost, until its answer comes."""
        self.due_s.append(due_s)
        self.late_s.append(late_s)
        self.latency_s.append(0.0)
        self.status.append(LOST)
        self.header.append("")

    @property
    def num_ok(self) -> int:
        return sum(status == 200 for status in self.status)

    def latency_ms(self, *percentiles: float) -> list[float]:
        """Percentiles of the latency of ALL requests: refused and lost ones must be looked at beside them."""
        return [float(value) for value in np.percentile(np.array(self.latency_s) * 1000, percentiles)]


def run_load(plan: Plan) -> Outcome:
    """Carry out a plan in a fresh process. Raises CalledProcessError when that fails as a whole."""
    command = [sys.executable, "-m", "benchmarks.load"]
    done = subprocess.run(command, input=json.dumps(asdict(plan)), capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        print(done.stderr, file=sys.stderr)
    done.check_returncode()
    return Outcome(**json.loads(done.stdout))


def arrivals(rate: float, seconds: float, seed: int) -> npt.NDArray[np.float64]:
    """Times of a Poisson process in [0, seconds), rising."""
    generator = np.random.default_rng(seed)
    num_likely = int(rate * seconds + 6 * (rate * seconds) ** 0.5 + 6)
    times = np.cumsum(generator.exponential(1 / rate, num_likely))
    return times[times < seconds]


class Load:
    """One run of a plan, inside an event loop."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        address = urlsplit(plan.url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._requests = [_request(address.netloc, address.path, body) for body in plan.bodies]
        self._idle: list[_Connection] = []
        self._num_sent = 0
        self._outcome = Outcome()

    async def run(self) -> Outcome:
        self._start = time.monotonic()
        asked = self._open_loop() if self._plan.rate else self._closed_loop()
        await asked
        for connection in self._idle:
            connection.close()
        return self._outcome

    async def _open_loop(self) -> None:
        assert self._plan.rate is not None  # noqa: S101 - narrows for the type checker
        due = arrivals(self._plan.rate, self._plan.seconds, self._plan.seed)
        asked: list[asyncio.Task[None]] = []
        all_sent, loop = asyncio.Event(), asyncio.get_running_loop()

        def send(due_s: float) -> None:
            asked.append(asyncio.create_task(self._ask(due_s)))

        def clock() -> None:
            # A thread, because an event loop's own timers are rounded up to whole milliseconds.
            for due_s in due:
                time.sleep(max(0.0, self._start + due_s - time.monotonic()))
                loop.call_soon_threadsafe(send, float(due_s))
            loop.call_soon_threadsafe(all_sent.set)

        threading.Thread(target=clock, daemon=True).start()
        await all_sent.wait()
        await asyncio.gather(*asked)

    async def _closed_loop(self) -> None:
        async def caller() -> None:
            while self._now() < self._plan.seconds:
                await self._ask(self._now())

        await asyncio.gather(*(caller() for _ in range(self._plan.callers or 0)))

    async def _ask(self, due_s: float) -> None:
        request = self._requests[self._num_sent % len(self._requests)]
        number, self._num_sent = self._num_sent, self._num_sent + 1
        outcome = self._outcome
        outcome.sent(due_s, self._now() - due_s)
        try:
            async with asyncio.timeout(max(0.0, self._plan.seconds - due_s) + self._plan.patience_s):
                head, outcome.status[number] = await self._answer(request)
                outcome.header[number] = _header(head, self._plan.header)
        except (OSError, TimeoutError):
            pass  # stays LOST
        outcome.latency_s[number] = self._now() - due_s

    async def _answer(self, request: bytes) -> tuple[bytes, int]:
        connection = await self._free_connection()
        try:
            head = await connection.ask(request)
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)
        return head, int(head[9:12])

    async def _free_connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:  # servers close what was idle for some seconds
                return connection
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(_Connection, self._host, self._port))[1]

    def _now(self) -> float:
        return time.monotonic() - self._start


class _Connection(asyncio.Protocol):
    """A kept-alive connection that carries one request at a time. Answers need a Content-Length."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - narrows for the type checker
        self._transport = transport
        self._received = b""
        self._answer: asyncio.Future[bytes] | None = None

    @property
    def is_open(self) -> bool:
        return not self._transport.is_closing()

    async def ask(self, request: bytes) -> bytes:
        """Status line and headers of the answer, once its body is there too. Raises ConnectionError."""
        self._received = b""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def data_received(self, chunk: bytes) -> None:
        self._received += chunk
        head, found, body = self._received.partition(b"\r\n\r\n")
        if found and self._answer and not self._answer.done() and len(body) >= int(_header(head, "Content-Length")):
            self._answer.set_result(head)

    def connection_lost(self, _: Exception | None) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("the server closed the connection"))

    def close(self) -> None:
        self._transport.close()


def _request(host: str, path: str, body: str) -> bytes:
    content = body.encode()
    lines = (
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def _header(head: bytes, name: str) -> str:
    found = name and re.search(rb"(?mi)^" + re.escape(name.encode()) + rb":\s*(.*?)\s*$", head)
    return found.group(1).decode() if found else ""


if __name__ == "__main__":
    json.dump(asdict(asyncio.run(Load(Plan(**json.load(sys.stdin))).run())), sys.stdout)

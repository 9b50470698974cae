"""The load generator against a server whose answers are known."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from benchmarks.load import LOST, Load, Outcome, Plan, arrivals

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nserver-timing: queue;dur=3\r\n\r\n{}"
REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"


async def run(answer: bytes, delay_s: float = 0.0, **plan: object) -> tuple[Outcome, list[bytes]]:
    """Outcome of a plan against a server that gives this answer after `delay_s`, and the bodies it saw."""
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                bodies.append(await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])))
                await asyncio.sleep(delay_s)
                writer.write(answer[:20])
                await writer.drain()
                writer.write(answer[20:])
                if not answer:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/recommend"
        outcome = await Load(Plan(url, ["{1}", "{22}"], **plan)).run()  # type: ignore[arg-type]
    return outcome, bodies


def test_arrivals_come_at_the_stated_rate_and_are_exponential() -> None:
    gaps = np.diff(arrivals(200, 50, seed=0))
    assert 0.95 < gaps.mean() * 200 < 1.05
    assert 0.9 < gaps.std() / gaps.mean() < 1.1


def test_the_same_seed_gives_the_same_arrivals() -> None:
    assert np.array_equal(arrivals(10, 5, seed=3), arrivals(10, 5, seed=3))
    assert not np.array_equal(arrivals(10, 5, seed=3)[:5], arrivals(10, 5, seed=4)[:5])


async def test_open_loop_sends_whether_or_not_answers_come() -> None:
    outcome, bodies = await run(ANSWER, delay_s=0.3, rate=100.0, seconds=0.2)
    assert len(bodies) == len(arrivals(100, 0.2, 0)) == outcome.num_ok
    assert min(outcome.latency_s) >= 0.3


async def test_bodies_are_sent_in_turn() -> None:
    _, bodies = await run(ANSWER, callers=1, seconds=0.1)
    assert bodies[:3] == [b"{1}", b"{22}", b"{1}"]


async def test_closed_loop_keeps_the_stated_number_of_requests_under_way() -> None:
    outcome, _ = await run(ANSWER, delay_s=0.1, callers=3, seconds=0.25)
    assert outcome.num_ok == 9  # three rounds of three: the last begins before the end and is waited for


async def test_refusals_are_told_from_answers() -> None:
    outcome, _ = await run(REFUSAL, callers=1, seconds=0.05)
    assert set(outcome.status) == {429}
    assert outcome.num_ok == 0


async def test_a_request_without_an_answer_is_lost() -> None:
    outcome, _ = await run(b"", callers=1, seconds=0.05)
    assert set(outcome.status) == {LOST}


async def test_the_wait_for_an_answer_ends() -> None:
    outcome, _ = await run(ANSWER, delay_s=0.5, callers=1, seconds=0.05, patience_s=0.05)
    assert outcome.status == [LOST]
    assert outcome.latency_s[0] < 0.3


async def test_a_wanted_header_is_returned() -> None:
    outcome, _ = await run(ANSWER, callers=1, seconds=0.05, header="Server-Timing")
    assert set(outcome.header) == {"queue;dur=3"}


def test_percentiles_are_of_all_requests_in_milliseconds() -> None:
    assert Outcome(latency_s=[0.1, 0.2, 0.3], status=[200, 200, 429]).latency_ms(50, 100) == pytest.approx([200, 300])


def test_a_plan_is_open_or_closed() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        Plan("http://x/", ["{}"], 1.0, rate=1.0, callers=1)

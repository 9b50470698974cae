"""Batches close when full or late; nobody's failure, absence or crowd harms another."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from model.errors import InvalidInputError, NotReadyError, OverloadedError
from service.batcher import CALLERS_AT_A_TIME, MAX_RETRY_AFTER_S, Batcher

FOREVER_S = 60.0
BAD = -1


@dataclass(frozen=True)
class Number:
    """A question: what is twice this? Equal numbers are the same question."""

    value: int
    num_tokens: int = 1

    @property
    def key(self) -> int:
        return self.value


class Doubler:
    """Doubles numbers; a batch with BAD fails. Remembers its batches, and waits while held."""

    def __init__(self, token_s: float = 0.0) -> None:
        self.batches: list[list[int]] = []
        self.token_s = token_s
        self.may_run = threading.Event()
        self.may_run.set()

    def __call__(self, numbers: Sequence[Number]) -> list[int]:
        self.batches.append([number.value for number in numbers])
        self.may_run.wait(10)
        time.sleep(self.token_s * sum(number.num_tokens for number in numbers))
        if Number(BAD) in numbers:
            raise InvalidInputError("a bad question", "number")
        return [2 * number.value for number in numbers]


@asynccontextmanager
async def batching(doubler: Doubler, **settings: Any) -> AsyncIterator[Batcher[Number, int]]:
    chosen = {"max_tokens": 1000, "max_requests": 4, "max_wait_s": 0.0, "max_line": 100, "timeout_s": FOREVER_S}
    with ThreadPoolExecutor(1) as executor:
        async with Batcher(doubler, executor, **(chosen | settings)) as batcher:
            try:
                yield batcher
            finally:
                doubler.may_run.set()


async def hold_the_device(doubler: Doubler, batcher: Batcher[Number, int], num_tokens: int = 1) -> asyncio.Task[int]:
    """Keep the thread busy with question 0, so that whoever asks now has to wait."""
    doubler.may_run.clear()
    first = asyncio.create_task(batcher.ask(Number(0, num_tokens)))
    while not doubler.batches:
        await asyncio.sleep(0.001)
    return first


async def in_line(batcher: Batcher[Number, int], *numbers: int | Number) -> list[asyncio.Task[int]]:
    asked = [number if isinstance(number, Number) else Number(number) for number in numbers]
    tasks = [asyncio.create_task(batcher.ask(number)) for number in asked]
    await asyncio.sleep(0)
    return tasks


async def leave(*tasks: asyncio.Task[int]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_a_batch_full_of_requests_closes_without_waiting() -> None:
    doubler = Doubler()
    async with batching(doubler, max_requests=3, max_wait_s=FOREVER_S) as batcher, asyncio.timeout(5):
        await asyncio.gather(*(batcher.ask(Number(n)) for n in range(3)))
    assert doubler.batches == [[0, 1, 2]]


async def test_a_batch_full_of_tokens_closes_without_waiting() -> None:
    doubler = Doubler()
    async with batching(doubler, max_tokens=100, max_wait_s=FOREVER_S) as batcher, asyncio.timeout(5):
        await asyncio.gather(batcher.ask(Number(1, num_tokens=40)), batcher.ask(Number(2, num_tokens=60)))
    assert doubler.batches == [[1, 2]]


async def test_a_lone_caller_is_answered_at_once_when_nobody_is_waited_for() -> None:
    async with batching(Doubler()) as batcher, asyncio.timeout(5):
        assert await batcher.ask(Number(7)) == 14


async def test_a_lone_caller_is_answered_when_the_wait_is_over() -> None:
    async with batching(Doubler(), max_wait_s=0.02) as batcher, asyncio.timeout(5):
        assert await batcher.ask(Number(7)) == 14


async def test_a_lone_caller_waits_for_company() -> None:
    doubler = Doubler()
    async with batching(doubler, max_wait_s=0.2) as batcher, asyncio.timeout(5):
        first = asyncio.create_task(batcher.ask(Number(1)))
        await asyncio.sleep(0.02)
        await asyncio.gather(first, batcher.ask(Number(2)))
    assert doubler.batches == [[1, 2]]


async def test_who_comes_while_the_device_is_busy_goes_together() -> None:
    doubler = Doubler()
    async with batching(doubler) as batcher:
        first = await hold_the_device(doubler, batcher)
        waiting = await in_line(batcher, 1, 2, 3)
        doubler.may_run.set()
        await asyncio.gather(first, *waiting)
    assert doubler.batches == [[0], [1, 2, 3]]


async def test_everybody_gets_their_own_answer() -> None:
    doubler = Doubler()
    async with batching(doubler, max_requests=7) as batcher:
        assert await asyncio.gather(*(batcher.ask(Number(n)) for n in range(50))) == [2 * n for n in range(50)]
    assert max(len(batch) for batch in doubler.batches) <= 7


async def test_the_same_question_is_computed_once() -> None:
    doubler = Doubler()
    async with batching(doubler) as batcher:
        first = await hold_the_device(doubler, batcher)
        waiting = await in_line(batcher, 1, 0, 1, 1)
        doubler.may_run.set()
        assert await asyncio.gather(first, *waiting) == [0, 2, 0, 2, 2]
    assert doubler.batches == [[0], [1]]


async def test_a_crowd_is_woken_a_few_at_a_time_so_that_others_have_their_turn() -> None:
    doubler = Doubler()
    async with batching(doubler, max_requests=100) as batcher, asyncio.timeout(5):
        await hold_the_device(doubler, batcher)
        crowd = await in_line(batcher, *[1] * 10, *range(1, 11))
        doubler.may_run.set()
        num_awake = [0]
        while num_awake[-1] < len(crowd):
            await asyncio.sleep(0)
            num_awake.append(sum(caller.done() for caller in crowd))
    assert max(now - before for before, now in pairwise(num_awake)) <= CALLERS_AT_A_TIME
    assert [await caller for caller in crowd] == [2] * 10 + [2 * n for n in range(1, 11)]


async def test_a_question_that_was_answered_is_computed_anew() -> None:
    doubler = Doubler()
    async with batching(doubler) as batcher:
        await batcher.ask(Number(1))
        await batcher.ask(Number(1))
    assert doubler.batches == [[1], [1]]


async def test_who_leaves_does_not_take_the_answer_from_who_asked_the_same() -> None:
    doubler = Doubler()
    async with batching(doubler) as batcher:
        await hold_the_device(doubler, batcher)
        leaves, stays = await in_line(batcher, 1, 1)
        await leave(leaves)
        doubler.may_run.set()
        assert await stays == 2


async def test_a_question_that_everybody_left_is_not_computed() -> None:
    doubler = Doubler()
    async with batching(doubler) as batcher:
        first = await hold_the_device(doubler, batcher)
        (stays, *leave_) = await in_line(batcher, 1, 2, 2)
        await leave(*leave_)
        doubler.may_run.set()
        assert await asyncio.gather(first, stays) == [0, 2]
    assert doubler.batches == [[0], [1]]


async def test_a_question_that_everybody_left_while_it_was_computed_can_be_asked_again() -> None:
    doubler = Doubler()
    async with batching(doubler) as batcher, asyncio.timeout(5):
        await leave(await hold_the_device(doubler, batcher))
        (again,) = await in_line(batcher, 0)
        doubler.may_run.set()
        assert await again == 0
    assert doubler.batches == [[0], [0]]


async def test_a_caller_who_leaves_as_the_batch_closes_is_not_computed() -> None:
    doubler = Doubler()
    async with batching(doubler, max_requests=2, max_wait_s=FOREVER_S) as batcher:
        leaves, stays = await in_line(batcher, 1, 2)
        leaves.cancel()  # the batch closes in this very turn of the event loop
        assert await stays == 4
    assert doubler.batches == [[2]]


async def test_a_caller_who_left_gives_up_their_place_in_line() -> None:
    doubler = Doubler()
    async with batching(doubler, max_line=1) as batcher:
        await hold_the_device(doubler, batcher)
        await leave(*await in_line(batcher, 1))
        (stays,) = await in_line(batcher, 2)
        doubler.may_run.set()
        assert await stays == 4


async def test_a_caller_who_leaves_during_the_computation_harms_nobody() -> None:
    doubler = Doubler()
    async with batching(doubler, max_requests=2, max_wait_s=FOREVER_S) as batcher:
        doubler.may_run.clear()
        leaves, stays = await in_line(batcher, 1, 2)
        while not doubler.batches:
            await asyncio.sleep(0.001)
        leaves.cancel()
        doubler.may_run.set()
        assert await stays == 4


async def test_an_answer_that_comes_too_late_is_given_up() -> None:
    doubler = Doubler()
    async with batching(doubler, timeout_s=0.02) as batcher:
        first = await hold_the_device(doubler, batcher)
        (waits,) = await in_line(batcher, 1)
        with pytest.raises(TimeoutError):
            await first
        with pytest.raises(TimeoutError):
            await waits
        doubler.may_run.set()
    assert doubler.batches == [[0]]


async def test_a_caller_whose_time_is_up_when_the_batch_closes_is_not_computed() -> None:
    doubler = Doubler()
    async with batching(doubler, timeout_s=0.03) as batcher:
        first = await hold_the_device(doubler, batcher)
        (waits,) = await in_line(batcher, 1)
        doubler.may_run.set()
        time.sleep(0.05)  # the event loop is late: it has noticed neither the time-out nor the answer
        await asyncio.gather(first, waits, return_exceptions=True)
        assert isinstance(waits.exception(), TimeoutError)
    assert doubler.batches == [[0]]


async def test_a_full_line_refuses_at_once() -> None:
    doubler = Doubler()
    async with batching(doubler, max_line=2) as batcher:
        first = await hold_the_device(doubler, batcher)
        waiting = await in_line(batcher, 1, 2)
        with pytest.raises(OverloadedError) as refused:
            await batcher.ask(Number(3))
        assert refused.value.retry_after_s == 1  # no batch has been measured yet
        doubler.may_run.set()
        assert await asyncio.gather(first, *waiting) == [0, 2, 4]


async def test_a_full_line_takes_who_asks_what_is_asked_already() -> None:
    doubler = Doubler()
    async with batching(doubler, max_line=1) as batcher:
        await hold_the_device(doubler, batcher)
        waiting = await in_line(batcher, 1, 1)
        doubler.may_run.set()
        assert await asyncio.gather(*waiting) == [2, 2]


async def test_who_is_refused_learns_how_long_the_line_will_take() -> None:
    doubler = Doubler(token_s=0.001)
    async with batching(doubler, max_tokens=50, max_line=1) as batcher:
        await batcher.ask(Number(1, num_tokens=50))
        doubler.batches.clear()
        running = await hold_the_device(doubler, batcher, num_tokens=2000)
        waiting = await in_line(batcher, Number(2, num_tokens=3000))
        with pytest.raises(OverloadedError) as refused:
            await batcher.ask(Number(3))
        doubler.token_s = 0.0
        await leave(running, *waiting)
    # 5,000 tokens at a millisecond each, less what the measured question counts for beside its tokens.
    assert 3 <= refused.value.retry_after_s < 10


async def test_answers_that_cost_no_tokens_teach_no_pace_at_which_others_are_refused() -> None:
    doubler = Doubler()
    async with batching(doubler, max_tokens=1000, timeout_s=5.0) as batcher:
        await batcher.ask(Number(1, num_tokens=180))
        for _ in range(60):
            await batcher.ask(Number(2, num_tokens=0))
        doubler.batches.clear()
        running = await hold_the_device(doubler, batcher, num_tokens=180)
        waiting = await in_line(batcher, Number(3, num_tokens=180), Number(4, num_tokens=0))
        doubler.may_run.set()
        assert await asyncio.gather(running, *waiting) == [0, 6, 8]


async def test_nobody_is_told_to_come_back_next_week() -> None:
    doubler = Doubler(token_s=0.001)
    async with batching(doubler, max_line=1, timeout_s=1e9) as batcher:
        await batcher.ask(Number(1, num_tokens=10))
        doubler.batches.clear()
        await hold_the_device(doubler, batcher)
        waiting = await in_line(batcher, Number(2, num_tokens=10**9))
        with pytest.raises(OverloadedError) as refused:
            await batcher.ask(Number(3))
        await leave(*waiting)
    assert refused.value.retry_after_s == MAX_RETRY_AFTER_S


async def test_who_could_not_be_answered_in_time_is_refused_at_once() -> None:
    doubler = Doubler(token_s=0.001)
    async with batching(doubler, timeout_s=3.0) as batcher:
        await batcher.ask(Number(1, num_tokens=50))
        doubler.batches.clear()
        await hold_the_device(doubler, batcher)
        waiting = await in_line(batcher, Number(2, num_tokens=2000), Number(3, num_tokens=2000))
        with pytest.raises(OverloadedError):
            await batcher.ask(Number(4))
        await leave(*waiting)


async def test_a_bad_question_fails_only_its_own_callers() -> None:
    async with batching(Doubler(), max_requests=3, max_wait_s=FOREVER_S) as batcher:
        asked = (1, BAD, BAD, 2)
        good, bad, same, fine = await asyncio.gather(*(batcher.ask(Number(n)) for n in asked), return_exceptions=True)
    assert (good, fine) == (2, 4)
    assert isinstance(bad, InvalidInputError)
    assert isinstance(same, InvalidInputError)


async def test_a_bad_question_is_found_by_halves() -> None:
    doubler = Doubler()
    async with batching(doubler, max_requests=16, max_wait_s=FOREVER_S) as batcher:
        numbers = [*range(9), BAD, *range(10, 16)]
        answers = await asyncio.gather(*(batcher.ask(Number(n)) for n in numbers), return_exceptions=True)
    assert [a for a in answers if isinstance(a, int)] == [2 * n for n in numbers if n != BAD]
    assert len(doubler.batches) == 1 + 2 * 4  # both halves of 16, 8, 4 and 2


async def test_who_leaves_a_failed_batch_is_not_computed_again() -> None:
    doubler = Doubler()
    async with batching(doubler, max_requests=2, max_wait_s=FOREVER_S) as batcher:
        doubler.may_run.clear()
        bad, leaves = await in_line(batcher, BAD, 1)
        while not doubler.batches:
            await asyncio.sleep(0.001)
        await leave(leaves)
        doubler.may_run.set()
        with pytest.raises(InvalidInputError):
            await bad
    assert doubler.batches == [[BAD, 1], [BAD]]


async def test_a_failed_batch_does_not_stop_the_next_one() -> None:
    async with batching(Doubler()) as batcher:
        with pytest.raises(InvalidInputError):
            await batcher.ask(Number(BAD))
        assert await batcher.ask(Number(3)) == 6


async def test_answers_that_do_not_match_the_questions_are_given_to_nobody() -> None:
    class Forgetful(Doubler):
        def __call__(self, numbers: Sequence[Number]) -> list[int]:
            return [0, 0]

    async with batching(Forgetful()) as batcher:
        with pytest.raises(RuntimeError, match="1 questions were answered by 2"):
            await batcher.ask(Number(1))


async def test_other_work_gets_its_turn_between_two_batches() -> None:
    doubler = Doubler()
    async with batching(doubler, max_requests=1) as batcher:
        first = await hold_the_device(doubler, batcher)
        work = asyncio.create_task(batcher.run_between_batches(lambda: doubler.batches.append([])))
        waiting = await in_line(batcher, 1, 2)
        doubler.may_run.set()
        await asyncio.gather(first, work, *waiting)
    assert doubler.batches == [[0], [], [1], [2]]


async def test_who_leaves_while_other_work_is_done_is_not_computed() -> None:
    doubler = Doubler()
    async with batching(doubler) as batcher:
        doubler.may_run.clear()
        work = asyncio.create_task(batcher.run_between_batches(lambda: doubler.may_run.wait(10)))
        leaves, stays = await in_line(batcher, 1, 2)
        await asyncio.sleep(0.01)
        await leave(leaves)
        doubler.may_run.set()
        await asyncio.gather(work, stays)
    assert doubler.batches == [[2]]


async def test_closing_answers_whoever_waits_and_refuses_the_next() -> None:
    doubler = Doubler()
    async with batching(doubler, max_wait_s=FOREVER_S) as batcher:
        waiting = await in_line(batcher, 1, 2)
    assert [await task for task in waiting] == [2, 4]
    with pytest.raises(NotReadyError):
        await batcher.ask(Number(3))

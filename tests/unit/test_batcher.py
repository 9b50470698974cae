"""Batches close when full or late; nobody's failure, absence or crowd harms another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from model.errors import InvalidInputError, NotReadyError, OverloadedError
from service.batcher import Batcher

FOREVER_S = 60.0


class Doubler:
    """Answers twice the number; -1 is a bad question. Remembers its batches, and waits while held."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_run = threading.Event()
        self.may_run.set()

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.may_run.wait(10)
        if -1 in numbers:
            raise InvalidInputError("a bad question", "number")
        return [2 * number for number in numbers]


@asynccontextmanager
async def batching(
    doubler: Doubler, max_batch: int = 4, max_wait_s: float = 0.0, max_line: int = 100
) -> AsyncIterator[Batcher[int, int]]:
    with ThreadPoolExecutor(1) as executor:
        async with Batcher(doubler, executor, max_batch=max_batch, max_wait_s=max_wait_s, max_line=max_line) as batcher:
            try:
                yield batcher
            finally:
                doubler.may_run.set()


async def hold_the_device(doubler: Doubler, batcher: Batcher[int, int]) -> asyncio.Task[int]:
    """Keep the thread busy with question 0, so that whoever asks now has to wait."""
    doubler.may_run.clear()
    first = asyncio.create_task(batcher.ask(0))
    while not doubler.batches:
        await asyncio.sleep(0.001)
    return first


async def in_line(batcher: Batcher[int, int], *numbers: int) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(batcher.ask(number)) for number in numbers]
    await asyncio.sleep(0)
    return tasks


async def test_a_full_batch_closes_without_waiting() -> None:
    doubler = Doubler()
    async with batching(doubler, max_batch=3, max_wait_s=FOREVER_S) as batcher, asyncio.timeout(5):
        await asyncio.gather(*(batcher.ask(n) for n in range(3)))
    assert doubler.batches == [[0, 1, 2]]


async def test_a_lone_caller_is_answered_when_the_wait_is_over() -> None:
    doubler = Doubler()
    async with batching(doubler, max_wait_s=0.02) as batcher, asyncio.timeout(5):
        assert await batcher.ask(7) == 14


async def test_a_lone_caller_waits_for_company() -> None:
    doubler = Doubler()
    async with batching(doubler, max_wait_s=0.2) as batcher, asyncio.timeout(5):
        first = asyncio.create_task(batcher.ask(1))
        await asyncio.sleep(0.02)
        await asyncio.gather(first, batcher.ask(2))
    assert doubler.batches == [[1, 2]]


async def test_everybody_gets_their_own_answer() -> None:
    doubler = Doubler()
    async with batching(doubler, max_batch=7) as batcher:
        assert await asyncio.gather(*(batcher.ask(n) for n in range(50))) == [2 * n for n in range(50)]
    assert max(len(batch) for batch in doubler.batches) <= 7


async def test_a_full_line_refuses_at_once() -> None:
    doubler = Doubler()
    async with batching(doubler, max_line=2) as batcher:
        first = await hold_the_device(doubler, batcher)
        waiting = await in_line(batcher, 1, 2)
        with pytest.raises(OverloadedError):
            await batcher.ask(3)
        doubler.may_run.set()
        assert await asyncio.gather(first, *waiting) == [0, 2, 4]


async def test_a_caller_who_left_is_not_computed() -> None:
    doubler = Doubler()
    async with batching(doubler) as batcher:
        first = await hold_the_device(doubler, batcher)
        stays, leaves = await in_line(batcher, 1, 2)
        leaves.cancel()
        await asyncio.sleep(0)
        doubler.may_run.set()
        assert await asyncio.gather(first, stays) == [0, 2]
    assert doubler.batches == [[0], [1]]


async def test_a_caller_who_left_gives_up_their_place_in_line() -> None:
    doubler = Doubler()
    async with batching(doubler, max_line=1) as batcher:
        await hold_the_device(doubler, batcher)
        (leaves,) = await in_line(batcher, 1)
        leaves.cancel()
        await asyncio.wait({leaves})
        (stays,) = await in_line(batcher, 2)
        doubler.may_run.set()
        assert await stays == 4


async def test_a_caller_who_leaves_during_the_computation_harms_nobody() -> None:
    doubler = Doubler()
    async with batching(doubler, max_batch=2, max_wait_s=FOREVER_S) as batcher:
        doubler.may_run.clear()
        leaves, stays = await in_line(batcher, 1, 2)
        while not doubler.batches:
            await asyncio.sleep(0.001)
        leaves.cancel()
        doubler.may_run.set()
        assert await stays == 4


async def test_a_bad_question_fails_only_its_own_caller() -> None:
    doubler = Doubler()
    async with batching(doubler, max_batch=3, max_wait_s=FOREVER_S) as batcher:
        good, bad, fine = await asyncio.gather(*(batcher.ask(n) for n in (1, -1, 2)), return_exceptions=True)
    assert (good, fine) == (2, 4)
    assert isinstance(bad, InvalidInputError)


async def test_a_failed_batch_does_not_stop_the_next_one() -> None:
    async with batching(Doubler()) as batcher:
        with pytest.raises(InvalidInputError):
            await batcher.ask(-1)
        assert await batcher.ask(3) == 6


async def test_answers_that_do_not_match_the_questions_are_given_to_nobody() -> None:
    def forgetful(numbers: Sequence[int]) -> list[int]:
        return [0, 0]

    with ThreadPoolExecutor(1) as executor:
        async with Batcher(forgetful, executor, max_batch=1, max_wait_s=0, max_line=9) as batcher:
            with pytest.raises(RuntimeError, match="1 questions were answered by 2"):
                await batcher.ask(1)


async def test_closing_answers_whoever_waits_and_refuses_the_next() -> None:
    doubler = Doubler()
    async with batching(doubler, max_wait_s=FOREVER_S) as batcher:
        waiting = await in_line(batcher, 1, 2)
    assert [await task for task in waiting] == [2, 4]
    with pytest.raises(NotReadyError):
        await batcher.ask(3)

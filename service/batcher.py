"""Questions that arrive one by one are answered together.

A batch closes when it is full or when its first caller has waited long enough. A full line refuses at once; a caller
who left is not computed; a failed batch is tried again one by one, so that a bad question fails only its own caller.
Knows neither HTTP nor tensors.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

from model.errors import NotReadyError, OverloadedError

Question = TypeVar("Question")
Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Caller(Generic[Question, Answer]):
    question: Question
    answer: asyncio.Future[Answer]
    late_at: float
    """Event-loop time at which the batch closes for this caller."""


class Batcher(Generic[Question, Answer]):
    """Use as `async with Batcher(...) as batcher`; leaving answers whoever still waits, then stops."""

    def __init__(
        self,
        answer_all: Callable[[Sequence[Question]], Sequence[Answer]],
        executor: Executor,
        *,
        max_batch: int,
        max_wait_s: float,
        max_line: int,
    ) -> None:
        """`answer_all` blocks, runs in `executor`, one batch at a time, and returns one answer a question, in order."""
        self._answer_all = answer_all
        self._executor = executor
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._max_line = max_line
        self._line: deque[_Caller[Question, Answer]] = deque()
        self._changed = asyncio.Event()
        self._closing = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.create_task(self._run(), name="batcher")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing = True
        self._changed.set()
        await self._loop

    async def ask(self, question: Question) -> Answer:
        """The answer to one question. Raises OverloadedError when the line is full, NotReadyError when closing.

        Cancelling takes the question out of the line.
        """
        if self._closing:
            raise NotReadyError("the service is shutting down; ask another replica")
        if len(self._line) >= self._max_line:
            raise OverloadedError(f"{self._max_line} requests are waiting already; try again later")
        loop = asyncio.get_running_loop()
        caller = _Caller[Question, Answer](question, loop.create_future(), loop.time() + self._max_wait_s)
        self._line.append(caller)
        self._changed.set()
        try:
            return await caller.answer
        finally:
            with suppress(ValueError):  # not there any more: the usual case
                self._line.remove(caller)

    async def _run(self) -> None:
        while not self._closing or self._line:
            await self._answer(await self._next_batch())

    async def _next_batch(self) -> list[_Caller[Question, Answer]]:
        """Wait for a first caller, then until the batch is full or that caller has waited long enough."""
        while not self._line and not self._closing:
            await self._change()
        if self._line:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._line[0].late_at):
                    while len(self._line) < self._max_batch and not self._closing:
                        await self._change()
        return [self._line.popleft() for _ in range(min(self._max_batch, len(self._line)))]

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _answer(self, batch: list[_Caller[Question, Answer]]) -> None:
        batch = [caller for caller in batch if not caller.answer.done()]
        if not batch:
            return
        try:
            answers = await self._compute([caller.question for caller in batch])
        except Exception as error:  # noqa: BLE001 - each caller gets it, and the loop lives on
            await self._answer_one_by_one(batch, error)
        else:
            for caller, answer in zip(batch, answers, strict=True):
                if not caller.answer.done():
                    caller.answer.set_result(answer)

    async def _compute(self, questions: list[Question]) -> Sequence[Answer]:
        loop = asyncio.get_running_loop()
        answers = await loop.run_in_executor(self._executor, self._answer_all, questions)
        if len(answers) != len(questions):
            raise RuntimeError(f"{len(questions)} questions were answered by {len(answers)} answers")
        return answers

    async def _answer_one_by_one(self, batch: list[_Caller[Question, Answer]], error: Exception) -> None:
        if len(batch) == 1:
            if not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        logger.warning("a batch of %d failed (%s); answering one by one", len(batch), type(error).__name__)
        for caller in batch:
            await self._answer([caller])

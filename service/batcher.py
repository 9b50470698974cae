"""Questions that arrive one by one are answered together.

A batch closes when the device is idle and either the line fills a batch or its first caller has waited long enough;
service/line.py says who is in it. Callers with the same question share one computation. A line that is too long refuses
at once and says when to come back; a caller who left or whose time is up is not computed; a failed batch is tried again
by halves, so that a bad question fails only its own callers. Knows neither HTTP nor tensors.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from model.errors import NotReadyError, OverloadedError
from service.line import Line

MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1.0, 60.0
PACE_MEMORY = 0.8
"""What the measured pace keeps of the past at each batch: the last ten batches make nine tenths of it."""
CALLERS_AT_A_TIME = 4
"""Callers woken together: each keeps the event loop busy for a few tenths of a millisecond."""
TOKENS_A_QUESTION = 16
"""What search and answer are worth in tokens, about, so that questions without any do not teach a pace of their own."""


class Question(Protocol):
    """What can be asked."""

    @property
    def num_tokens(self) -> int:
        """What it takes of a batch's budget."""

    @property
    def key(self) -> Hashable:
        """Equal for questions that have the same answer."""


Asked = TypeVar("Asked", bound=Question)
Answer = TypeVar("Answer")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job(Generic[Asked, Answer]):
    """A question and all who asked it."""

    question: Asked
    closes_at: float
    """Event-loop time at which its batch goes, full or not."""
    callers: set[asyncio.Future[Answer]] = field(default_factory=set)

    @property
    def num_tokens(self) -> int:
        return self.question.num_tokens

    @property
    def is_wanted(self) -> bool:
        """Whether someone still waits, who has neither left nor run out of time."""
        return not all(caller.done() for caller in self.callers)

    def fail(self, error: Exception) -> None:
        for caller in self.callers:
            if not caller.done():
                caller.set_exception(error)


class _Pace:
    """How fast batches are answered, averaged over the recent ones.

    A question is worth its tokens and TOKENS_A_QUESTION more, since one without any is searched for as well.
    """

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def add(self, tokens: int, questions: int, seconds: float) -> None:
        self._tokens = PACE_MEMORY * self._tokens + tokens + TOKENS_A_QUESTION * questions
        self._seconds = PACE_MEMORY * self._seconds + seconds

    def seconds_for(self, tokens: int, questions: int) -> float:
        """0 while nothing is known."""
        worth = tokens + TOKENS_A_QUESTION * questions
        return worth * self._seconds / self._tokens if self._tokens else 0.0


class Batcher(Generic[Asked, Answer]):
    """Use as `async with Batcher(...) as batcher`; leaving answers whoever still waits, then stops."""

    def __init__(
        self,
        answer_all: Callable[[Sequence[Asked]], Sequence[Answer]],
        executor: Executor,
        *,
        max_tokens: int,
        max_requests: int,
        max_wait_s: float,
        max_line: int,
        timeout_s: float,
    ) -> None:
        """`answer_all` blocks, runs in `executor`, one batch at a time, and returns one answer a question, in order."""
        self._answer_all = answer_all
        self._executor = executor
        self._max_wait_s = max_wait_s
        self._max_line = max_line
        self._timeout_s = timeout_s
        self._line: Line[_Job[Asked, Answer]] = Line(max_tokens, max_requests)
        self._jobs: dict[Hashable, _Job[Asked, Answer]] = {}
        """Every question that waits or is being computed and still has a caller."""
        self._running_tokens = self._running_questions = 0
        self._pace = _Pace()
        self._changed = asyncio.Event()
        self._device = asyncio.Lock()
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

    async def ask(self, question: Asked) -> Answer:
        """The answer to one question. Cancelling gives up the place in line, unless someone else asks the same.

        Raises OverloadedError when too many wait already, TimeoutError when the answer is not there in time,
        NotReadyError when closing.
        """
        if self._closing:
            raise NotReadyError("the service is shutting down; ask another replica")
        loop = asyncio.get_running_loop()
        job = self._jobs.get(question.key) or self._enqueue(question, loop.time())
        answer: asyncio.Future[Answer] = loop.create_future()
        job.callers.add(answer)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answer
        finally:
            job.callers.discard(answer)
            if not job.callers:
                self._forget(job)

    async def run_between_batches(self, work: Callable[[], Result]) -> Result:
        """Run blocking work in the executor while no batch is there; who asks meanwhile waits in line."""
        async with self._device:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _enqueue(self, question: Asked, now: float) -> _Job[Asked, Answer]:
        wait_s = self._pace.seconds_for(
            self._line.num_tokens + self._running_tokens, len(self._line) + self._running_questions
        )
        is_hopeless = self._line.fills_a_batch and wait_s > self._timeout_s
        if len(self._line) >= self._max_line or is_hopeless:
            raise OverloadedError(
                f"{len(self._line)} requests are waiting already; try again later",
                retry_after_s=min(max(wait_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S),
            )
        job = _Job[Asked, Answer](question, closes_at=now + self._max_wait_s)
        self._jobs[question.key] = job
        self._line.add(job)
        self._changed.set()
        return job

    def _forget(self, job: _Job[Asked, Answer]) -> None:
        """From now on the same question is a new one."""
        self._line.discard(job)
        if self._jobs.get(job.question.key) is job:
            del self._jobs[job.question.key]

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as self._deliveries:
            while not self._closing or self._line:
                await self._batch_is_due()
                async with self._device:
                    await self._answer_next_batch()

    async def _answer_next_batch(self) -> None:
        batch = self._line.take_batch()
        self._running_tokens, self._running_questions = sum(job.num_tokens for job in batch), len(batch)
        await self._answer(batch)
        self._running_tokens = self._running_questions = 0

    async def _batch_is_due(self) -> None:
        """Wait for a first caller, then until a batch is full or that caller has waited long enough."""
        while not self._line and not self._closing:
            await self._change()
        first = next(iter(self._line), None)
        if first is None or first.closes_at <= asyncio.get_running_loop().time():
            return
        with suppress(TimeoutError):
            async with asyncio.timeout_at(first.closes_at):
                while not self._line.fills_a_batch and not self._closing:
                    await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _answer(self, batch: list[_Job[Asked, Answer]]) -> None:
        batch = [job for job in batch if job.is_wanted]
        if not batch:
            return
        try:
            answers = await self._compute(batch)
        except Exception as error:  # noqa: BLE001 - each caller gets it, and the loop lives on
            await self._answer_by_halves(batch, error)
        else:
            self._deliveries.create_task(self._deliver(batch, answers))

    async def _compute(self, batch: list[_Job[Asked, Answer]]) -> Sequence[Answer]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        answers = await loop.run_in_executor(self._executor, self._answer_all, [job.question for job in batch])
        if len(answers) != len(batch):
            raise RuntimeError(f"{len(batch)} questions were answered by {len(answers)} answers")
        self._pace.add(sum(job.num_tokens for job in batch), len(batch), loop.time() - started)
        return answers

    async def _deliver(self, batch: list[_Job[Asked, Answer]], answers: Sequence[Answer]) -> None:
        """Wake the callers of an answered batch, a few at a time; the device is at the next batch already."""
        room = CALLERS_AT_A_TIME
        for job, answer in zip(batch, answers, strict=True):
            self._forget(job)
            for caller in tuple(job.callers):
                if not room:
                    await asyncio.sleep(0)
                    room = CALLERS_AT_A_TIME
                if not caller.done():
                    caller.set_result(answer)
                    room -= 1

    async def _answer_by_halves(self, batch: list[_Job[Asked, Answer]], error: Exception) -> None:
        if len(batch) == 1:
            self._forget(batch[0])
            batch[0].fail(error)
            return
        logger.warning("a batch of %d failed (%s); trying its halves", len(batch), type(error).__name__)
        middle = len(batch) // 2
        await self._answer(batch[:middle])
        await self._answer(batch[middle:])

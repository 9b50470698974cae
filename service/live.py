"""What is served now: one recommender, one thread that owns the device, and the line in front of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from model.errors import NotReadyError
from model.ranking import Query, Ranking
from service.batcher import Batcher
from service.errors import AnswerTimeoutError
from service.protocols import Catalog, PreparedQuery, Recommender
from service.settings import Settings


@dataclass(frozen=True)
class Answer:
    """A ranking and the very catalog that it was made from."""

    ranking: Ranking
    catalog: Catalog


@dataclass(frozen=True, eq=False)
class _Question:
    """A prepared query and the snapshot that prepared it, which will answer it whatever is served by then."""

    prepared: PreparedQuery
    recommender: Recommender

    @property
    def num_tokens(self) -> int:
        return self.prepared.num_tokens

    @property
    def key(self) -> Hashable:
        return id(self.recommender), self.prepared.key


class LiveRecommender:
    """The recommender that answers. Made by `live_recommender`, which owns the thread."""

    def __init__(self, device: ThreadPoolExecutor, settings: Settings) -> None:
        self._timeout_s = settings.request_timeout_s
        self._recommender: Recommender | None = None
        self.batcher: Batcher[_Question, Answer] = Batcher(
            _rank_all,
            device,
            max_tokens=settings.max_batch_tokens,
            max_requests=settings.max_batch_requests,
            max_wait_s=settings.max_wait_ms / 1000,
            max_line=settings.max_line,
            timeout_s=settings.request_timeout_s,
        )

    @property
    def snapshot(self) -> Recommender | None:
        """What is served now; None before the first catalog."""
        return self._recommender

    @property
    def recommender(self) -> Recommender:
        """What is served now; raises NotReadyError before the first catalog."""
        if self._recommender is None:
            raise NotReadyError("no catalog is served yet: see /health/ready, and try again later")
        return self._recommender

    async def rank(self, query: Query) -> Answer:
        """Rank one query by what is served now. Raises NotReadyError, OverloadedError, AnswerTimeoutError."""
        recommender = self.recommender
        question = _Question(recommender.prepare(query), recommender)
        try:
            return await self.batcher.ask(question)
        except TimeoutError:
            raise AnswerTimeoutError(
                f"no answer within {self._timeout_s:g} s: try again later, or with less history"
            ) from None

    async def swap_in(self, recommender: Recommender) -> None:
        """Serve `recommender` from the next request on, after it has ranked once on the device thread."""
        await self.batcher.run_between_batches(recommender.warm_up)
        self._recommender = recommender


def _rank_all(questions: Sequence[_Question]) -> list[Answer]:
    """Answer a batch; the questions of one snapshot are ranked together."""
    answers: dict[_Question, Answer] = {}
    for recommender in {id(question.recommender): question.recommender for question in questions}.values():
        own = [question for question in questions if question.recommender is recommender]
        rankings = recommender.rank_prepared([question.prepared for question in own])
        for question, ranking in zip(own, rankings, strict=True):
            answers[question] = Answer(ranking, recommender.catalog)
    return [answers[question] for question in questions]


@asynccontextmanager
async def live_recommender(settings: Settings) -> AsyncIterator[LiveRecommender]:
    """Start the device thread and the batcher; at the end answer who still waits, then stop both."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="device") as device:
        live = LiveRecommender(device, settings)
        async with live.batcher:
            yield live

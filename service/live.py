"""What is served now: one recommender, one thread that owns the device, and the line in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from model.errors import NotReadyError
from model.ranking import Query, Ranking
from service.batcher import Batcher
from service.errors import AnswerTimeoutError
from service.protocols import Catalog, Recommender
from service.settings import Settings


@dataclass(frozen=True)
class Answer:
    """A ranking and the very catalog that it was made from."""

    ranking: Ranking
    catalog: Catalog


class LiveRecommender:
    """The recommender that answers. Made by `live_recommender`, which owns the thread."""

    def __init__(self, device: ThreadPoolExecutor, settings: Settings) -> None:
        self._device = device
        self._timeout_s = settings.request_timeout_s
        self._recommender: Recommender | None = None
        self.batcher: Batcher[Query, Answer] = Batcher(
            self._rank_all,
            device,
            max_batch=settings.max_batch_requests,
            max_wait_s=settings.max_wait_ms / 1000,
            max_line=settings.max_line,
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
        """Rank one query. Raises NotReadyError, OverloadedError, AnswerTimeoutError."""
        _ = self.recommender  # refuse before waiting in line
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self.batcher.ask(query)
        except TimeoutError:
            raise AnswerTimeoutError(
                f"no answer within {self._timeout_s:g} s: try again later, or with less history"
            ) from None

    async def swap_in(self, recommender: Recommender) -> None:
        """Serve `recommender` from the next batch on, after it has ranked once on the device thread."""
        await asyncio.get_running_loop().run_in_executor(self._device, recommender.warm_up)
        self._recommender = recommender

    def _rank_all(self, queries: Sequence[Query]) -> list[Answer]:
        recommender = self.recommender  # one snapshot for the whole batch
        return [Answer(ranking, recommender.catalog) for ranking in recommender.rank(queries)]


@asynccontextmanager
async def live_recommender(settings: Settings) -> AsyncIterator[LiveRecommender]:
    """Start the device thread and the batcher; at the end answer who still waits, then stop both."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="device") as device:
        live = LiveRecommender(device, settings)
        async with live.batcher:
            yield live

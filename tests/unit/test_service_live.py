"""A request belongs to the snapshot that was served when it came."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fakes import SHELF, FakeCatalog, FakeRecommender

from model.ranking import Query, Weights
from service.live import Answer, LiveRecommender, live_recommender
from service.settings import Settings

QUERY = Query(history=("red mug",))


@asynccontextmanager
async def serving_v1(**settings: float) -> AsyncIterator[tuple[LiveRecommender, FakeRecommender]]:
    old = FakeRecommender(FakeCatalog("v1", SHELF))
    async with live_recommender(Settings(**settings)) as live:
        await live.swap_in(old)
        yield live, old


async def ask(live: LiveRecommender, *queries: Query) -> list[asyncio.Task[Answer]]:
    tasks = [asyncio.create_task(live.rank(query)) for query in queries]
    await asyncio.sleep(0)
    return tasks


async def test_a_batch_across_a_swap_is_answered_by_both_snapshots() -> None:
    new = FakeRecommender(FakeCatalog("v2", SHELF))
    async with serving_v1(max_wait_ms=1000, max_batch_requests=4) as (live, old):
        before = await ask(live, QUERY, Query(()))
        await live.swap_in(new)
        after = await ask(live, Query(()), QUERY)
        answers = await asyncio.gather(*before, *after)
    assert [answer.catalog.version for answer in answers] == ["v1", "v1", "v2", "v2"]
    assert [answer.ranking.catalog_version for answer in answers] == ["v1", "v1", "v2", "v2"]
    assert (old.batches, new.batches) == ([[QUERY, Query(())]], [[Query(()), QUERY]])


async def test_who_waits_through_a_swap_is_answered_by_the_old_snapshot() -> None:
    device_is_free = threading.Event()
    new = FakeRecommender(FakeCatalog("v2", SHELF))
    async with serving_v1() as (live, old):
        old.before_batch = lambda: device_is_free.wait(10)
        computed, *_ = await ask(live, QUERY)
        await asyncio.sleep(0.01)
        swap = asyncio.create_task(live.swap_in(new))
        waiting, *_ = await ask(live, Query(()))
        device_is_free.set()
        answers = await asyncio.gather(computed, waiting)
        await swap
        later = await live.rank(QUERY)
    assert [answer.catalog.version for answer in [*answers, later]] == ["v1", "v1", "v2"]


async def test_a_snapshot_is_freed_after_its_last_request() -> None:
    old = FakeRecommender(FakeCatalog("v1", SHELF))
    is_there = weakref.ref(old)
    async with live_recommender(Settings()) as live:
        await live.swap_in(old)
        await live.rank(QUERY)
        await live.swap_in(FakeRecommender(FakeCatalog("v2", SHELF)))
        del old
        gc.collect()
        assert is_there() is None


async def test_the_same_query_at_once_is_ranked_once() -> None:
    async with serving_v1() as (live, recommender):
        answers = await asyncio.gather(*await ask(live, QUERY, Query(("red mug",)), Query(("red mug",), k=1)))
    assert recommender.batches == [[QUERY, Query(("red mug",), k=1)]]
    assert answers[0] is answers[1]
    assert len(answers[2].ranking.items) == 1


async def test_queries_that_differ_in_anything_are_ranked_each() -> None:
    queries = [QUERY, Query(("red mug",), allow_repeats=True), Query(("red mug",), weights=Weights(cf=2.0))]
    queries += [Query(("red mug",), exclude=frozenset({"red bowl"})), Query(("red mug", "red mug"))]
    async with serving_v1() as (live, recommender):
        await asyncio.gather(*await ask(live, *queries))
    assert recommender.batches == [queries]

"""A published catalog is served when it loads, and changes nothing when it does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fakes import SHELF, FakePublications, FakeRecommender, publish, publish_text

from model.ranking import Query
from service.live import LiveRecommender, live_recommender
from service.protocols import Recommender
from service.settings import Settings
from service.watcher import CatalogWatcher

QUERY = Query(history=("red mug",))


@asynccontextmanager
async def watching(store: Path, publications: FakePublications | None = None, **settings: float) -> AsyncIterator:
    """The live recommender and a watcher that looks when told to."""
    chosen = Settings(store=store, **settings)
    async with live_recommender(chosen) as live:
        with ThreadPoolExecutor(1) as loader:
            yield live, CatalogWatcher(publications or FakePublications(store), live, loader, chosen)


def version_of(live: LiveRecommender) -> str:
    return live.recommender.catalog.version


async def test_an_empty_store_is_waited_for(tmp_path: Path) -> None:
    async with watching(tmp_path) as (live, watcher):
        await watcher.look()
        assert live.snapshot is None
        assert watcher.waiting_for == "no catalog is published yet: run offline.reindex"
        publish(tmp_path, "v1", SHELF)
        await watcher.look()
        assert version_of(live) == "v1"


async def test_a_catalog_is_warm_before_it_answers(tmp_path: Path) -> None:
    publish(tmp_path, "v1", SHELF)
    async with watching(tmp_path) as (live, watcher):
        await watcher.look()
        assert live.recommender.is_warm


async def test_the_published_version_is_loaded_once(tmp_path: Path) -> None:
    publish(tmp_path, "v1", SHELF)
    async with watching(tmp_path) as (live, watcher):
        await watcher.look()
        first = live.recommender
        await watcher.look()
        assert live.recommender is first


async def test_an_answer_comes_with_the_catalog_that_made_it(tmp_path: Path) -> None:
    publish(tmp_path, "v1", SHELF)
    async with watching(tmp_path) as (live, watcher):
        await watcher.look()
        publish(tmp_path, "v2", SHELF[:2])
        before = await live.rank(QUERY)
        await watcher.look()
        after = await live.rank(QUERY)
    assert (before.ranking.catalog_version, before.catalog.version) == ("v1", "v1")
    assert (after.ranking.catalog_version, after.catalog.version) == ("v2", "v2")


async def test_a_damaged_catalog_leaves_the_old_one_serving_and_shows(tmp_path: Path) -> None:
    publish(tmp_path, "v1", SHELF)
    async with watching(tmp_path) as (live, watcher):
        await watcher.look()
        publish_text(tmp_path, "v2", '[{"item_id": "cut o')
        await watcher.look()
        assert version_of(live) == "v1"
        assert watcher.problem == "catalog v2 was refused: v2.json is damaged"


async def test_an_unexpected_failure_is_a_refusal_too(tmp_path: Path) -> None:
    publish_text(tmp_path, "v1", '[{"unheard_of": 1}]')
    async with watching(tmp_path) as (live, watcher):
        await watcher.look()
        assert live.snapshot is None
        assert "TypeError" in watcher.waiting_for


async def test_a_refusal_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish_text(tmp_path, "v1", "damaged")
    async with watching(tmp_path, catalog_retry_s=1e-6) as (_, watcher):
        for _ in range(3):
            await watcher.look()
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


async def test_a_refused_version_is_tried_again_later(tmp_path: Path) -> None:
    publish_text(tmp_path, "v1", "damaged")
    async with watching(tmp_path, catalog_retry_s=0.05) as (live, watcher):
        await watcher.look()
        publish(tmp_path, "v1", SHELF)
        await watcher.look()
        assert live.snapshot is None
        await asyncio.sleep(0.06)
        await watcher.look()
        assert version_of(live) == "v1"
        assert watcher.problem is None


async def test_going_back_to_the_served_version_ends_the_refusal(tmp_path: Path) -> None:
    publish(tmp_path, "v1", SHELF)
    async with watching(tmp_path) as (_, watcher):
        await watcher.look()
        publish_text(tmp_path, "v2", "damaged")
        await watcher.look()
        publish(tmp_path, "v1", SHELF)
        await watcher.look()
        assert watcher.problem is None


async def test_a_catalog_that_cannot_rank_is_refused(tmp_path: Path) -> None:
    class Cold(FakePublications):
        def load(self, version: str, beside: Recommender | None) -> FakeRecommender:
            recommender = super().load(version, beside)
            recommender.warm_up = lambda: 1 / 0
            return recommender

    publish(tmp_path, "v1", SHELF)
    async with watching(tmp_path, Cold(tmp_path)) as (live, watcher):
        await watcher.look()
        assert live.snapshot is None
        assert "ZeroDivisionError" in watcher.waiting_for


async def test_the_new_catalog_is_loaded_beside_the_old_one(tmp_path: Path) -> None:
    beside: list[str | None] = []

    class Remembering(FakePublications):
        def load(self, version: str, old: Recommender | None) -> FakeRecommender:
            beside.append(old.catalog.version if old else None)
            return super().load(version, old)

    async with watching(tmp_path, Remembering(tmp_path)) as (_, watcher):
        for version in ("v1", "v2"):
            publish(tmp_path, version, SHELF)
            await watcher.look()
    assert beside == [None, "v1"]

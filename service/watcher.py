"""Notices a newly published catalog, loads it beside the one that answers, and swaps it in.

A version that does not load changes nothing: the old one goes on answering, the refusal is logged once and shown in
readiness, and the version is tried again from time to time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

from model.errors import RecommenderError
from service.live import LiveRecommender
from service.protocols import Publications
from service.settings import Settings

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """Why a published catalog is not served."""

    version: str | None
    """None when not even its name could be read."""
    reason: str
    retry_at: float
    """Event-loop time."""


class CatalogWatcher:
    """Keeps `live` on the version that is published."""

    def __init__(
        self, publications: Publications, live: LiveRecommender, loader: ThreadPoolExecutor, settings: Settings
    ) -> None:
        self._publications = publications
        self._live = live
        self._loader = loader
        self._poll_s = settings.catalog_poll_s
        self._retry_s = settings.catalog_retry_s
        self._loading: str | None = None
        self._refusal: Refusal | None = None

    @property
    def problem(self) -> str | None:
        """Why what is published is not what is served; None while all is well."""
        if self._refusal is None:
            return None
        return f"catalog {self._refusal.version or '(unreadable CURRENT)'} was refused: {self._refusal.reason}"

    @property
    def waiting_for(self) -> str:
        """What has to happen before the first catalog is served."""
        if self.problem:
            return self.problem
        if self._loading:
            return f"catalog {self._loading} is being loaded"
        return "no catalog is published yet: run offline.reindex"

    async def run(self) -> None:
        """Look every `catalog_poll_s`, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(self._poll_s)

    async def look(self) -> None:
        """Read which version is published; serve it if it is another one and loads."""
        version = None
        try:
            version = await self._in_loader(self._publications.current_version)
            if version is None or not self._is_due(version):
                return
            await self._serve(version)
        except RecommenderError as error:
            self._refuse(version, str(error))
        except Exception as error:
            # Whatever a damaged catalog makes a library raise must not end the watch.
            if self._refuse(version, f"loading it failed ({type(error).__name__}); the log has the traceback"):
                logger.exception("unexpected failure to load catalog %s", version)
        finally:
            self._loading = None

    def _is_due(self, version: str) -> bool:
        snapshot = self._live.snapshot
        if snapshot is not None and snapshot.catalog.version == version:
            self._refusal = None
            return False
        if self._refusal is None or self._refusal.version != version:
            return True
        return asyncio.get_running_loop().time() >= self._refusal.retry_at

    async def _serve(self, version: str) -> None:
        self._loading = version
        logger.info("loading catalog %s", version)
        recommender = await self._in_loader(self._publications.load, version, self._live.snapshot)
        await self._live.swap_in(recommender)
        self._refusal = None
        logger.info("serving catalog %s with checkpoint %s", version, recommender.checkpoint_id)

    def _refuse(self, version: str | None, reason: str) -> bool:
        """Remember a refusal; log it and return True when it is news."""
        retry_at = asyncio.get_running_loop().time() + self._retry_s
        before, self._refusal = self._refusal, Refusal(version, reason, retry_at)
        is_news = before is None or (before.version, before.reason) != (version, reason)
        if is_news:
            logger.error("%s", self.problem)
        return is_news

    async def _in_loader(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._loader, function, *arguments)


@asynccontextmanager
async def catalog_watcher(
    publications: Publications, live: LiveRecommender, settings: Settings
) -> AsyncIterator[CatalogWatcher]:
    """Watch while the body runs. A load in progress at the end is waited for, since a thread cannot be stopped."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as loader:
        watcher = CatalogWatcher(publications, live, loader, settings)
        watch = asyncio.create_task(watcher.run(), name="catalog-watcher")
        try:
            yield watcher
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch

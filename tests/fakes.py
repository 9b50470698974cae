"""A small recommender without a language model, whose rankings can be worked out by hand.

An item is three short vectors, one a signal; a person is the mean of their history's vectors; a score is the weighted
sum of three dot products. Catalogs are JSON files in a store, published as the real ones are: a file, then CURRENT.
`python tests/fakes.py` is the real service over such a store, set up by the environment like the real one.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from model.artifacts import replace_file
from model.config import SIGNALS
from model.errors import ArtifactError
from model.ranking import Query, RankedItem, Ranking, Signals
from service.__main__ import serve
from service.app import create_app
from service.protocols import Recommender
from service.settings import Settings

MAX_HISTORY = 10
POISON = "poison"
"""A history with this id makes the whole batch fail, as a bug in the model would."""

Vector = tuple[float, ...]


@dataclass(frozen=True)
class FakeItem:
    """The item's three vectors; None where the signal is missing."""

    item_id: str
    image: Vector | None = (0.0, 0.0)
    cf: Vector | None = (0.0, 0.0)
    text: Vector | None = (0.0, 0.0)
    events: int = 0
    title: str = "A title"
    brand: str | None = None
    category: str | None = None
    description: str | None = None
    image_file: str | None = None
    image_url: str | None = None

    @property
    def signals(self) -> dict[str, bool]:
        return {signal: getattr(self, signal) is not None for signal in SIGNALS}

    def vector(self, signal: str) -> Vector:
        return getattr(self, signal) or (0.0, 0.0)


@dataclass(frozen=True)
class FakeCatalog:
    version: str
    items: tuple[FakeItem, ...]

    @property
    def num_items(self) -> int:
        return len(self.items)

    @property
    def names(self) -> set[str | None]:
        return {name for item in self.items for name in (item.category, item.brand)}

    def row(self, item_id: str) -> int | None:
        return next((row for row, item in enumerate(self.items) if item.item_id == item_id), None)

    def item(self, row: int) -> FakeItem:
        return self.items[row]


@dataclass(frozen=True, eq=False)
class FakePrepared:
    """A query whose forward pass costs a token an item."""

    query: Query
    num_tokens: int

    @property
    def key(self) -> Hashable:
        return self.query


@dataclass
class FakeRecommender:
    catalog: FakeCatalog
    checkpoint_id: str = "fake"
    delay_s: float = 0.0
    """How long a batch takes."""
    before_batch: Callable[[], object] = field(default=lambda: None)
    """Called on the device thread; lets a test hold a batch."""
    batches: list[list[Query]] = field(default_factory=list)
    is_warm: bool = False

    def warm_up(self) -> None:
        self.is_warm = True

    def prepare(self, query: Query) -> FakePrepared:
        return FakePrepared(query, len(self._used(query)))

    def rank_prepared(self, prepared: Sequence[FakePrepared]) -> list[Ranking]:
        queries = [one.query for one in prepared]
        self.batches.append(queries)
        self.before_batch()
        time.sleep(self.delay_s)
        return [self._rank_one(query) for query in queries]

    def _used(self, query: Query) -> list[str]:
        return [i for i in query.history if self.catalog.row(i) is not None][-MAX_HISTORY:]

    def _rank_one(self, query: Query) -> Ranking:
        if POISON in query.history:
            raise RuntimeError("secret detail of a bug")
        known = [i for i in query.history if self.catalog.row(i) is not None]
        used = self._used(query)
        seen = set() if query.allow_repeats else set(query.history)
        eligible = [item for item in self.catalog.items if _is_eligible(item, query)]
        allowed = [item for item in eligible if item.item_id not in seen | query.exclude]
        ranked = [self._by_model(item, used, query) if used else self._by_popularity(item) for item in allowed]
        ranked.sort(key=lambda item: -item.score)  # stable: ties stay in row order
        return Ranking(
            items=tuple(ranked[: query.k]),
            unknown_items=tuple(dict.fromkeys(i for i in query.history if self.catalog.row(i) is None)),
            history_used=len(used),
            history_truncated=len(known) > len(used),
            checkpoint=self.checkpoint_id,
            catalog_version=self.catalog.version,
            unknown_filters=tuple(sorted((query.categories | query.brands) - self.catalog.names)),
        )

    def _by_model(self, item: FakeItem, used: list[str], query: Query) -> RankedItem:
        history = [self.catalog.items[self.catalog.row(item_id)] for item_id in used]
        addends = {}
        for signal in SIGNALS:
            columns = zip(*(past.vector(signal) for past in history), strict=True)
            user = [sum(column) / len(history) for column in columns]
            dot = sum(u * i for u, i in zip(user, item.vector(signal), strict=True))
            addends[signal] = getattr(query.weights, signal) * dot
        return RankedItem(item.item_id, sum(addends.values()), "model", Signals(**addends))

    def _by_popularity(self, item: FakeItem) -> RankedItem:
        total = sum(other.events for other in self.catalog.items) or 1
        return RankedItem(item.item_id, item.events / total, "popular", None)


def _is_eligible(item: FakeItem, query: Query) -> bool:
    of_category = not query.categories or item.category in query.categories
    return of_category and (not query.brands or item.brand in query.brands)


class FakePublications:
    """Catalogs in `<store>/catalogs/<version>.json`."""

    def __init__(self, store: Path, delay_s: float = 0.0) -> None:
        self._catalogs = store / "catalogs"
        self._delay_s = delay_s

    def current_version(self) -> str | None:
        path = self._catalogs / "CURRENT"
        return path.read_text() if path.exists() else None

    def load(self, version: str, beside: Recommender | None) -> FakeRecommender:
        path = self._catalogs / f"{version}.json"
        try:
            items = tuple(FakeItem(**item) for item in json.loads(path.read_text()))
        except ValueError:
            raise ArtifactError(f"{path.name} is damaged") from None
        return FakeRecommender(FakeCatalog(version, items), delay_s=self._delay_s)


def publish(store: Path, version: str, items: Sequence[FakeItem]) -> None:
    """Make `version` the current one."""
    publish_text(store, version, json.dumps([asdict(item) for item in items]))


def publish_text(store: Path, version: str, text: str) -> None:
    """Make `version` the current one, whatever its file holds."""
    catalogs = store / "catalogs"
    catalogs.mkdir(parents=True, exist_ok=True)
    replace_file(catalogs / f"{version}.json", text.encode())
    replace_file(catalogs / "CURRENT", version.encode())


SHELF = (
    FakeItem("red mug", image=(1, 0), cf=(1, 0), text=(0, 1), events=1, title="Mug", brand="Kiln", category="Mugs"),
    FakeItem("red bowl", image=(1, 0), cf=(0, 1), text=(0, 1), events=5, title="Bowl", image_url="https://x.test/b"),
    FakeItem("blue/mug", image=(0, 1), cf=(1, 0), text=(0, 1), events=2, title="Mug, blue", image_file="ab/ab12.png"),
    FakeItem("blue bowl", image=(0, 1), cf=None, text=(1, 0), events=2, title="Bowl, blue"),
    FakeItem("thé/image", image=None, cf=None, text=(1, 1), title="Tea"),
)
"""To a history of one red mug: red bowl 2 (image 1, cf 0, text 1), blue/mug 2 (0, 1, 1), thé/image 1, blue bowl 0."""


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `app` in this process, while the app's lifespan runs."""
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state)}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(with_state), base_url="http://test") as client:
            yield client


@asynccontextmanager
async def serving(store: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service in this process that has `SHELF` loaded as version v1."""
    publish(store, "v1", SHELF)
    app = create_app(Settings(store=store, catalog_poll_s=0.01, **settings), FakePublications(store))
    async with running(app) as client:
        while (await client.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.005)
        yield client


def main() -> None:
    settings = Settings()
    delay_s = float(os.environ.get("FAKE_DELAY_S", "0"))
    serve(settings, create_app(settings, FakePublications(settings.store, delay_s)))


if __name__ == "__main__":
    main()

"""What travels over HTTP, and how it becomes a query or is made from an answer. Unknown fields are refused."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from model.config import SIGNALS
from model.ranking import Query, RankedItem, Weights
from service.live import Answer
from service.protocols import Catalog, CatalogItem

ItemId = Annotated[str, Field(min_length=1, max_length=256)]
FilterName = Annotated[str, Field(min_length=1, max_length=256)]
IncludedField = Literal["title", "brand", "category", "image_url"]
Weight = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class _Request(BaseModel):
    """Strict: "5" is not 5, and true is not 1."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class _Response(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class SignalWeights(_Request):
    """What each signal's part of the score is multiplied by."""

    image: Weight = 1.0
    cf: Weight = 1.0
    text: Weight = 1.0


class RecommendRequest(_Request):
    """One person's history, and what to answer."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"history": ["B001", "B017", "B042"], "k": 3},
                {
                    "history": ["B001", "B017"],
                    "k": 5,
                    "exclude": ["B099"],
                    "categories": ["Mugs", "Bowls"],
                    "include": ["title", "image_url"],
                    "weights": {"image": 2.0},
                },
            ]
        }
    )

    history: Annotated[list[ItemId], Field(max_length=1000)]
    """Item ids, oldest first. May be empty. The newest ones that the model reads are used."""
    k: int = Field(default=10, ge=1, le=100)
    """How many items to return."""
    exclude: Annotated[list[ItemId], Field(max_length=500)] = []
    """Ids never to return."""
    categories: Annotated[list[FilterName], Field(max_length=100)] = []
    """Return only items of one of these categories, spelt as in the catalog. Empty: whatever the category."""
    brands: Annotated[list[FilterName], Field(max_length=100)] = []
    """Return only items of one of these brands. Given both, an item must be of a category and of a brand named."""
    allow_repeats: bool = False
    """Whether items of the history may be returned."""
    include: list[IncludedField] = []
    """Item fields to add to each answer."""
    weights: SignalWeights = SignalWeights()
    """Shifts the balance between looks, company and words."""

    def query(self) -> Query:
        return Query(
            history=tuple(self.history),
            k=self.k,
            exclude=frozenset(self.exclude),
            categories=frozenset(self.categories),
            brands=frozenset(self.brands),
            allow_repeats=self.allow_repeats,
            weights=Weights(image=self.weights.image, cf=self.weights.cf, text=self.weights.text),
        )


class SignalScores(_Response):
    """The three addends of a score."""

    image: float
    cf: float
    text: float


class RecommendedItem(_Response):
    """One answer; title, brand, category and image_url are there when `include` asked for them."""

    item_id: str
    score: float
    """Sum of `signals`; for a popular item, its share of training events."""
    signals: SignalScores | None
    """null for a popular item."""
    source: Literal["model", "popular"]
    title: str | None = None
    brand: str | None = None
    category: str | None = None
    image_url: str | None = None

    @classmethod
    def of(cls, ranked: RankedItem, catalog: Catalog, include: list[IncludedField]) -> Self:
        parts = ranked.signals
        signals = SignalScores(image=parts.image, cf=parts.cf, text=parts.text) if parts else None
        return cls(
            item_id=ranked.item_id,
            score=ranked.score,
            signals=signals,
            source=ranked.source,
            **_included(ranked.item_id, catalog, include),
        )


class RecommendResponse(_Response):
    """The ranking, and what it was made of."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "recommendation_id": "8b1f2c9e-5d0e-4c5e-9a51-0f6d6a1f3a52",
                    "checkpoint": "demo-4f1d2a",
                    "catalog_version": "20250301-120000-9c1e",
                    "items": [
                        {
                            "item_id": "B058",
                            "score": 12.5,
                            "signals": {"image": 6.25, "cf": 4.0, "text": 2.25},
                            "source": "model",
                            "title": "Striped mug",
                        }
                    ],
                    "unknown_items": [],
                    "unknown_filters": [],
                    "history_used": 3,
                    "history_truncated": False,
                }
            ]
        }
    )

    recommendation_id: str
    """Unique to this answer."""
    checkpoint: str
    catalog_version: str
    items: list[RecommendedItem]
    """By falling score."""
    unknown_items: list[str]
    """Ids of the history that the catalog does not have."""
    unknown_filters: list[str]
    """Those of `categories` and `brands` that no item of the catalog has."""
    history_used: int
    """Items of the history that the model was shown."""
    history_truncated: bool
    """Whether the history was longer than the model reads."""

    @classmethod
    def of(cls, answer: Answer, include: list[IncludedField]) -> Self:
        ranking = answer.ranking
        return cls(
            recommendation_id=str(uuid.uuid4()),
            checkpoint=ranking.checkpoint,
            catalog_version=ranking.catalog_version,
            items=[RecommendedItem.of(item, answer.catalog, include) for item in ranking.items],
            unknown_items=list(ranking.unknown_items),
            unknown_filters=list(ranking.unknown_filters),
            history_used=ranking.history_used,
            history_truncated=ranking.history_truncated,
        )


class SignalsPresent(_Response):
    """Which signals say something of an item."""

    image: bool
    cf: bool
    text: bool


class Item(_Response):
    """An item as people see it."""

    item_id: str
    title: str
    brand: str | None
    category: str | None
    description: str | None
    image_url: str | None
    """A path of this service where it has the picture; else where the catalog says it is; else null."""
    signals: SignalsPresent

    @classmethod
    def fields_of(cls, item: CatalogItem) -> dict[str, Any]:
        present = {signal: item.signals[signal] for signal in SIGNALS}
        plain = {name: getattr(item, name) for name in ("item_id", "title", "brand", "category", "description")}
        return {**plain, "image_url": image_url(item), "signals": SignalsPresent(**present)}

    @classmethod
    def of(cls, item: CatalogItem) -> Self:
        return cls(**cls.fields_of(item))


_ITEM_EXAMPLE: JsonDict = {
    "item_id": "B058",
    "title": "Striped mug",
    "brand": "Kiln",
    "category": "Mugs",
    "description": "A mug with stripes.",
    "image_url": "/items/B058/image",
    "signals": {"image": True, "cf": False, "text": True},
}


class ItemResponse(Item):
    """One item, and the catalog that it was read from."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_ITEM_EXAMPLE, "catalog_version": "20250301-120000-9c1e"}]}
    )

    catalog_version: str

    @classmethod
    def found(cls, item: CatalogItem, catalog: Catalog) -> Self:
        return cls(**cls.fields_of(item), catalog_version=catalog.version)


class ItemsQuery(BaseModel):
    """Which items to list: the next page, or those of `ids`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    limit: int = Field(default=50, ge=1, le=200)
    """Items a page."""
    cursor: str | None = Field(default=None, max_length=1024)
    """`next_cursor` of the page before; without it, the first page."""
    ids: Annotated[list[ItemId], Field(max_length=100)] = []
    """Look these up instead; repeat the parameter for each."""


class ItemsResponse(_Response):
    """One page of the catalog, in its own order; or the items asked for, in the order asked."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [_ITEM_EXAMPLE],
                    "next_cursor": "WyIyMDI1MDMwMS0xMjAwMDAtOWMxZSIsNTBd",
                    "unknown_items": [],
                    "catalog_version": "20250301-120000-9c1e",
                }
            ]
        }
    )

    items: list[Item]
    next_cursor: str | None
    """For the next page; null after the last."""
    unknown_items: list[str]
    """Those of `ids` that the catalog does not have."""
    catalog_version: str


class LiveResponse(_Response):
    """The process answers."""

    status: Literal["live"] = "live"


class ReadyResponse(_Response):
    """What is served."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "status": "ready",
                    "checkpoint": "demo-4f1d2a",
                    "catalog_version": "20250301-120000-9c1e",
                    "num_items": 240,
                },
                {
                    "status": "degraded",
                    "checkpoint": "demo-4f1d2a",
                    "catalog_version": "20250301-120000-9c1e",
                    "num_items": 240,
                    "reason": "catalog 20250302-080000-11aa was refused: item_vectors.npy is truncated",
                },
            ]
        }
    )

    status: Literal["ready", "degraded"]
    """`degraded`: answering, but not from the catalog that is published; `reason` says why."""
    checkpoint: str
    catalog_version: str
    num_items: int
    reason: str | None = None


def image_url(item: CatalogItem) -> str | None:
    """Where a caller gets an item's picture."""
    return f"/items/{quote(item.item_id, safe='')}/image" if item.image_file else item.image_url


def _included(item_id: str, catalog: Catalog, include: list[IncludedField]) -> dict[str, Any]:
    row = catalog.row(item_id) if include else None
    if row is None:
        return {}
    item = catalog.item(row)
    values = {"title": item.title, "brand": item.brand, "category": item.category, "image_url": image_url(item)}
    return {name: values[name] for name in include}

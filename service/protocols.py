"""What the service asks of the model side. Imports no tensors, so that the service starts without them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

from model.ranking import Query, Ranking


class CatalogItem(Protocol):
    """One item as people see it."""

    @property
    def item_id(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def brand(self) -> str | None: ...
    @property
    def category(self) -> str | None: ...
    @property
    def description(self) -> str | None: ...
    @property
    def image_file(self) -> str | None:
        """Name below the store's `images/`, which is made of the content's hash."""

    @property
    def image_url(self) -> str | None: ...
    @property
    def signals(self) -> Mapping[Any, bool]: ...


class Catalog(Protocol):
    """One immutable version of the items, in rows 0 to num_items - 1."""

    @property
    def version(self) -> str: ...
    @property
    def num_items(self) -> int: ...
    def row(self, item_id: str) -> int | None: ...
    def item(self, row: int) -> CatalogItem: ...


class PreparedQuery(Protocol):
    """A query in terms of one recommender, which alone can rank it."""

    @property
    def num_tokens(self) -> int:
        """Tokens that its forward pass costs; 0 when it needs none (popular items, a user vector at hand)."""

    @property
    def key(self) -> Hashable:
        """Equal for queries of one recommender that have the same ranking."""


class Recommender(Protocol):
    """One catalog and the model that ranks it: the snapshot that is served."""

    @property
    def catalog(self) -> Catalog: ...
    @property
    def checkpoint_id(self) -> str: ...
    def warm_up(self) -> None:
        """Rank once, so that the first caller does not pay for it. Device thread only."""

    def prepare(self, query: Query) -> PreparedQuery:
        """What `rank_prepared` takes. Runs on the event loop: no tensors, tens of microseconds."""

    def rank_prepared(self, prepared: Sequence[Any]) -> Sequence[Ranking]:
        """One ranking for each PreparedQuery that this recommender's `prepare` made, in order.

        Blocking; device thread only.
        """


class Publications(Protocol):
    """The catalogs that the offline half has published."""

    def current_version(self) -> str | None:
        """The version to serve; None before the first. Raises ArtifactError when the name is damaged."""

    def load(self, version: str, beside: Recommender | None) -> Recommender:
        """Load a version; what it has in common with `beside` is shared. Blocking. Raises ArtifactError."""

"""What every raw format is read into: one event, one item; and the choice of format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from offline.ingest.fields import parse_id

UNTITLED = "Untitled item"
"""Stands for a title that is missing or unusable: the item was really bought, so its events count."""
MAX_PICTURES = 3
"""Addresses tried for one item, best first."""


class RawEvent(NamedTuple):
    user_id: str
    item_id: str
    timestamp: int
    """Seconds since 1970."""


@dataclass(frozen=True)
class RawItem:
    """An item after cleaning; None where the source says nothing usable."""

    item_id: str
    title: str | None = None
    brand: str | None = None
    category: str | None = None
    description: str | None = None
    pictures: tuple[str, ...] = ()
    """URLs, or paths below the folder of the items file; best first."""
    raw_title: str = ""
    """The title as it was found, to show in the report when it is unusable."""

    def completed_by(self, later: RawItem) -> RawItem:
        """Rule for an id that comes twice: the first row counts, what it lacks is taken from later ones."""
        return RawItem(
            item_id=self.item_id,
            title=self.title or later.title,
            brand=self.brand or later.brand,
            category=self.category or later.category,
            description=self.description or later.description,
            pictures=self.pictures or later.pictures,
            raw_title=self.raw_title or later.raw_title,
        )


@dataclass(frozen=True)
class RawFormat:
    """How one format's two files are read."""

    name: str
    event_columns: tuple[str, ...]
    item_columns: tuple[str, ...]
    """The first one is the item's id."""
    event: Callable[[dict[str, Any]], RawEvent]
    item: Callable[[dict[str, Any]], RawItem]
    local_pictures: bool
    """Whether a picture may be a path beside the items file."""

    def item_id(self, values: dict[str, Any]) -> str:
        """The id alone, without the work of cleaning the item. Raises BadRow."""
        return parse_id(values, self.item_columns[0])


def as_texts(value: object) -> list[str]:
    """The strings of a field that holds a string, a list of strings, or a list of lists."""
    if isinstance(value, str):
        return [
            value if value.isascii() else value.encode("utf-8", "replace").decode()
        ]  # JSON may hold lone surrogates
    if isinstance(value, list | tuple):
        return [text for part in value for text in as_texts(part)]
    return []

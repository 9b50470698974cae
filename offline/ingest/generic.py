"""Our own format: items and interactions with the column names of the dataset.

items         item_id, title; optional: brand, category (text or list; `genres` stands in for it), description,
              image (path below the items file's folder, or URL) or image_url
interactions  user_id, item_id, timestamp; anything else, such as a rating, is ignored
"""

from __future__ import annotations

from typing import Any

from offline.ingest.fields import parse_id, parse_timestamp, shorten
from offline.ingest.records import MAX_PICTURES, RawEvent, RawFormat, RawItem, as_texts
from offline.ingest.text import clean_description, clean_label, clean_title


def _event(values: dict[str, Any]) -> RawEvent:
    return RawEvent(parse_id(values, "user_id"), parse_id(values, "item_id"), parse_timestamp(values, "timestamp"))


def _item(values: dict[str, Any]) -> RawItem:
    title = " ".join(as_texts(values.get("title")))
    return RawItem(
        item_id=parse_id(values, "item_id"),
        title=clean_title(title),
        brand=clean_label(" ".join(as_texts(values.get("brand")))),
        category=_labels(values.get("category")) or _labels(values.get("genres")),
        description=clean_description(" ".join(as_texts(values.get("description")))),
        pictures=pictures_of(values),
        raw_title=shorten(title),
    )


def pictures_of(values: dict[str, Any]) -> tuple[str, ...]:
    """Paths and URLs of an item's pictures, in the order of `image`, then `image_url`."""
    named = [text.strip() for column in ("image", "image_url") for text in as_texts(values.get(column))]
    return tuple(dict.fromkeys(text for text in named if text))[:MAX_PICTURES]


def _labels(value: object) -> str | None:
    labels = dict.fromkeys(label for text in as_texts(value) if (label := clean_label(text)))
    return ", ".join(labels) or None


GENERIC = RawFormat("generic", ("user_id", "item_id", "timestamp"), ("item_id", "title"), _event, _item, True)

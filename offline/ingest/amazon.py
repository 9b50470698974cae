"""The Amazon review collections of 2018 and 2023 (https://amazon-reviews-2023.github.io), with the dirt they come with.

2018  reviewerID, asin, unixReviewTime (seconds); pictures under imageURLHighRes, imageURL or image; the older dumps of
      2014, whose metadata are Python literals with `imUrl` and nested `categories`, are read as well
2023  user_id, parent_asin, timestamp (milliseconds); pictures as a list of variants, the brand under `store`
"""

from __future__ import annotations

import re
from typing import Any

from offline.ingest.fields import parse_id, parse_timestamp, shorten
from offline.ingest.records import MAX_PICTURES, RawEvent, RawFormat, RawItem, as_texts
from offline.ingest.text import clean_description, clean_label, clean_title

_MAX_LEVELS = 5
_MAX_LEVEL_CHARACTERS = 50
_PROSE = re.compile(r"[.!?]$|[.!?] |</")
_ALT = re.compile(r"""\balt=["']([^"']+)["']""")
_BRAND_FRAME = re.compile(r"^by\s+|^visit amazon's\s+|\s+page$", re.IGNORECASE)
_PICTURE_SIZES = ("hi_res", "large", "thumb")


def _event_2018(values: dict[str, Any]) -> RawEvent:
    return RawEvent(parse_id(values, "reviewerID"), parse_id(values, "asin"), parse_timestamp(values, "unixReviewTime"))


def _event_2023(values: dict[str, Any]) -> RawEvent:
    return RawEvent(parse_id(values, "user_id"), parse_id(values, "parent_asin"), parse_timestamp(values, "timestamp"))


def _item_2018(values: dict[str, Any]) -> RawItem:
    return _item(
        values,
        item_id=parse_id(values, "asin"),
        brand=values.get("brand"),
        category=_category(_first_path(values.get("category") or values.get("categories")), values.get("main_cat")),
        features=values.get("feature"),
        pictures=_first_of_each(values, ("imageURLHighRes", "imageURL", "image", "imUrl")),
    )


def _item_2023(values: dict[str, Any]) -> RawItem:
    details = values.get("details")
    return _item(
        values,
        item_id=parse_id(values, "parent_asin"),
        brand=values.get("store") or (details.get("Brand") if isinstance(details, dict) else None),
        category=_category(_first_path(values.get("categories")), values.get("main_category")),
        features=values.get("features"),
        pictures=_variants(values.get("images")),
    )


def _item(
    values: dict[str, Any],
    *,
    item_id: str,
    brand: object,
    category: str | None,
    features: object,
    pictures: tuple[str, ...],
) -> RawItem:
    title = " ".join(as_texts(values.get("title")))
    description = clean_description(" ".join(as_texts(values.get("description"))))
    return RawItem(
        item_id=item_id,
        title=clean_title(title),
        brand=_brand(brand),
        category=category,
        description=description or clean_description(" ".join(as_texts(features))),
        pictures=pictures,
        raw_title=shorten(title),
    )


def _brand(value: object) -> str | None:
    name = clean_label(" ".join(as_texts(value)))
    return clean_label(_BRAND_FRAME.sub("", name)) if name else None


def _first_path(value: object) -> list[str]:
    """Of several category paths the first; a flat list is one path."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return as_texts(value[0])
    return as_texts(value)


def _category(path: list[str], main: object) -> str | None:
    """The levels joined by commas, or else the main category.

    In 2018 the path runs on into bullet points of the product page: it ends at the first entry that is markup or prose.
    """
    levels: list[str] = []
    for raw in path:
        label = clean_label(raw)
        if label is None or len(label) > _MAX_LEVEL_CHARACTERS or _PROSE.search(raw.strip()):
            break
        levels.append(label)
    if levels:
        return ", ".join(list(dict.fromkeys(levels))[:_MAX_LEVELS])
    text = " ".join(as_texts(main))
    logo = _ALT.search(text)  # some main categories are the logo of a department
    return clean_label(text) or (clean_label(logo[1]) if logo else None)


def _first_of_each(values: dict[str, Any], columns: tuple[str, ...]) -> tuple[str, ...]:
    firsts = [texts[0].strip() for column in columns if (texts := as_texts(values.get(column)))]
    return tuple(dict.fromkeys(url for url in firsts if url))[:MAX_PICTURES]


def _variants(images: object) -> tuple[str, ...]:
    """All sizes of the MAIN variant, or of the first where none is called so; the largest first.

    `images` is a list of variants, or, in Parquet copies, a mapping of equally long lists.
    """
    if isinstance(images, dict):
        images = _transposed(images)
    variants = [v for v in images if isinstance(v, dict)] if isinstance(images, list) else []
    main = sorted(variants, key=lambda variant: variant.get("variant") != "MAIN")[:1]
    urls = [variant[size] for variant in main for size in _PICTURE_SIZES if isinstance(variant.get(size), str)]
    return tuple(dict.fromkeys(url.strip() for url in urls if url.strip()))[:MAX_PICTURES]


def _transposed(columns: dict[str, Any]) -> list[dict[str, Any]]:
    lists = {name: values for name, values in columns.items() if isinstance(values, list)}
    length = max((len(values) for values in lists.values()), default=0)
    return [{name: values[i] for name, values in lists.items() if i < len(values)} for i in range(length)]


AMAZON_2018 = RawFormat(
    "amazon2018", ("reviewerID", "asin", "unixReviewTime"), ("asin",), _event_2018, _item_2018, False
)
AMAZON_2023 = RawFormat(
    "amazon2023", ("user_id", "parent_asin", "timestamp"), ("parent_asin",), _event_2023, _item_2023, False
)

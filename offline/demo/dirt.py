"""The dirt of real catalogs and logs, put on the clean simulation in stated amounts."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from offline.demo.catalog import Product
from offline.demo.parameters import DemoParameters
from offline.demo.shoppers import Event
from offline.demo.wording import BRANDS, CATEGORIES

Row = dict[str, Any]


def item_rows(products: Sequence[Product], parameters: DemoParameters, seed: int) -> list[Row]:
    """Rows of items.jsonl: some brands, pictures and descriptions missing, some markup, and one item twice."""
    rng = np.random.default_rng([seed, 5])
    rows = [_item_row(product, parameters, rng) for product in products]
    rows.append(dict(rows[int(rng.integers(len(rows)))]))
    return rows


def _item_row(product: Product, parameters: DemoParameters, rng: np.random.Generator) -> Row:
    no_brand, no_description, markup, no_picture = rng.random(4) < (
        parameters.missing_brand_share,
        parameters.empty_description_share,
        parameters.html_share,
        parameters.missing_image_share,
    )
    description = "" if no_description else product.description
    return {
        "item_id": product.item_id,
        "title": product.title,
        "brand": None if no_brand else BRANDS[product.brand],
        "category": CATEGORIES[product.category].name,
        "description": marked_up(description) if markup and description else description,
        "image": None if no_picture else f"images/{product.item_id}.jpg",
    }


def marked_up(description: str) -> str:
    """The same sentences as a shop's old editor would have saved them."""
    first, _, rest = html.escape(description).partition(". ")
    return f"<p><b>{first}.</b><br/>{rest}&nbsp;</p>" if rest else f"<p>{first}&nbsp;</p>"


def broken_picture(rows: Sequence[Row], seed: int) -> str:
    """Path of the one picture whose file was cut off in transfer."""
    pictures = sorted({row["image"] for row in rows if row["image"]})
    return str(pictures[int(np.random.default_rng([seed, 6]).integers(len(pictures)))])


def event_rows(
    events: Sequence[Event], products: Sequence[Product], parameters: DemoParameters, seed: int
) -> list[tuple[str, str, int]]:
    """(user_id, item_id, timestamp) in log order: some events twice, some of items that the catalog has not."""
    rng = np.random.default_rng([seed, 7])
    rows = [(event.user_id, products[event.item].item_id, event.timestamp) for event in events]
    again = rng.permutation(len(rows))[: round(parameters.duplicate_event_share * len(rows))]
    strays = rng.permutation(len(rows))[: round(parameters.unknown_item_share * len(rows))]
    later = rng.integers(0, 3 * 86_400, len(again))
    rows += [(rows[at][0], rows[at][1], rows[at][2] + int(delay)) for at, delay in zip(again, later, strict=True)]
    rows += [(rows[at][0], f"withdrawn-{number}", rows[at][2]) for number, at in enumerate(strays)]
    return sorted(rows, key=lambda row: (row[2], row[0], row[1]))

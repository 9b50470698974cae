"""A small real dataset with something to learn: `from tiny_data import tiny_dataset`.

Items come in clusters (category, brand and the colour of the picture tell which). A person likes one cluster and walks
through it in row order, with an occasional step aside, so the next item follows from the last one and not from
popularity. Knows no raw format: it writes what `offline.ingest` would have written.
"""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from model.artifacts import building, write_manifest
from offline.dataset import INTERACTION_SCHEMA, ITEM_SCHEMA

CATEGORIES = ("Lamps", "Chairs", "Vases", "Clocks")
BRANDS = ("Arbor", "Brise", "Cobalt", "Delta")
ADJECTIVES = ("Small", "Tall", "Round", "Plain", "Woven", "Painted", "Folded", "Carved")
STEP_ASIDE = 0.1
FIRST_EVENT_S = 1_600_000_000
IMAGE_PX = 48


def tiny_dataset(
    folder: Path,
    num_users: int = 60,
    num_items: int = 24,
    seed: int = 0,
    *,
    num_new: int = 0,
    num_without_image: int = 0,
) -> Path:
    """Write a dataset of `num_items` items and `num_users` people with 5 to 8 different items each; returns `folder`.

    The last `num_new` items occur in no history; the first `num_without_image` have no picture. At least 12 of the
    items must occur in histories. Equal arguments give equal files.
    """
    num_known = num_items - num_new
    if num_known < 12:
        raise ValueError(f"{num_known} items with events: at least 12 are needed for histories of 8 different ones")
    generator = np.random.default_rng(seed)
    with building(folder) as temporary:
        (temporary / "images").mkdir()
        for row in range(num_without_image, num_items):
            _picture(row, generator).save(temporary / _image_name(row), quality=90)
        items = [_item(row, row >= num_without_image) for row in range(num_items)]
        events = [event for user in range(num_users) for event in _history(user, num_known, generator)]
        pq.write_table(pa.Table.from_pylist(items, ITEM_SCHEMA), temporary / "items.parquet")
        pq.write_table(pa.Table.from_pylist(events, INTERACTION_SCHEMA), temporary / "interactions.parquet")
        counts = {"items": num_items, "users": num_users, "events": len(events)}
        write_manifest(temporary, {"kind": "dataset", "name": folder.name, "counts": counts})
    return folder


def _cluster(row: int) -> int:
    return row % len(CATEGORIES)


def _image_name(row: int) -> str:
    return f"images/i{row:04d}.jpg"


def _item(row: int, has_image: bool) -> dict[str, str | None]:
    cluster, adjective = _cluster(row), ADJECTIVES[row // len(CATEGORIES) % len(ADJECTIVES)]
    category, brand = CATEGORIES[cluster], BRANDS[cluster]
    return {
        "item_id": f"i{row:04d}",
        "title": f"{adjective} {brand} {category[:-1]} No. {row}",
        "brand": brand,
        "category": category,
        "description": f"A {adjective.lower()} {category[:-1].lower()} by {brand}, number {row} of its series.",
        "image": _image_name(row) if has_image else None,
        "image_url": None,
    }


def _picture(row: int, generator: np.random.Generator) -> Image.Image:
    """Stripes in the hue of the cluster, their number growing with the row, under a little noise."""
    colour = np.array(colorsys.hsv_to_rgb(_cluster(row) / len(CATEGORIES), 0.8, 0.9)) * 255
    phase = np.linspace(0, (1 + row // len(CATEGORIES)) * np.pi, IMAGE_PX)
    shade = 0.6 + 0.4 * np.cos(phase)[None, :, None]
    noise = generator.normal(0, 6, (IMAGE_PX, IMAGE_PX, 3))
    return Image.fromarray((shade * colour + noise).clip(0, 255).astype(np.uint8))


def _history(user: int, num_items: int, generator: np.random.Generator) -> list[dict[str, str | int]]:
    rows = _walk(num_items, int(generator.integers(5, 9)), generator)
    start_s = FIRST_EVENT_S + int(generator.integers(0, 10_000_000))
    splits = ["train"] * (len(rows) - 2) + ["validation", "test"]
    return [
        {
            "user_id": f"u{user:05d}",
            "item_id": f"i{row:04d}",
            "timestamp": start_s + 3600 * position,
            "split": split,
        }
        for position, (row, split) in enumerate(zip(rows, splits, strict=True))
    ]


def _walk(num_items: int, length: int, generator: np.random.Generator) -> list[int]:
    """`length` different rows: usually the next one of the same cluster, round and round."""
    rows = [int(generator.integers(num_items))]
    while len(rows) < length:
        ring = [row for row in range(num_items) if _cluster(row) == _cluster(rows[-1])]
        following = ring[(ring.index(rows[-1]) + 1) % len(ring)]
        if following in rows or generator.random() < STEP_ASIDE:
            following = int(generator.choice([row for row in range(num_items) if row not in rows]))
        rows.append(following)
    return rows

"""A made-up catalog of any size, written by the code that writes the real ones.

Columns are as long as a shop's are: about 330 bytes an item. Item vectors have the geometry of trained ones; features
are the same for every item, since a catalog never looks into them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.index_vectors import World
from model.artifacts import write_manifest
from model.catalog_items import CATALOG_SCHEMA
from model.config import SIGNALS
from model.heads import OWN, ItemFeatures
from model.index_build import write_index
from model.prompt import Segments
from offline.publish import Contents, describe, write_contents

VECTOR_WIDTH = 192
FEATURE_WIDTHS = {"image": 128, "cf": 50, "text": 128}
"""Narrower than real ones (1152, 50, 768), of which ten million are 79 GB; only those of a history's items are read."""
MIN_RECALL = 0.95
NUM_CATEGORIES = 2_000
ITEMS_A_BRAND = 100
MAX_ROWS_AT_ONCE = 500_000
_WORDS = pa.array(
    ["red", "green", "striped", "plain", "cotton", "oak", "steel", "lamp", "chair", "mug", "bowl", "clock"]
)


def write_catalog(folder: Path, num_items: int, seed: int) -> dict[str, Any]:
    """Write a whole version of `num_items` items to `folder`. Returns its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = Contents(
        items=items_table(num_items, seed),
        segments=_segments(num_items, seed),
        features=_features(num_items),
        item_vectors=_item_vectors(folder.with_name("vectors.npy"), num_items, seed),
        popularity=np.random.default_rng(seed).zipf(1.5, num_items).clip(max=100_000),
    )
    write_contents(folder, contents)
    folder.with_name("vectors.npy").unlink()
    index = write_index(folder, np.load(folder / "item_vectors.npy", mmap_mode="r"), min_recall=MIN_RECALL)
    facts = {"version": folder.name, "checkpoint": "none", "index": index, **describe(contents)}
    return write_manifest(folder, facts)


def items_table(num_items: int, seed: int) -> pa.Table:
    """CATALOG_SCHEMA; 3 % of the items have no brand and 1 % no category."""
    generator = np.random.default_rng(seed)
    starts = range(0, num_items, MAX_ROWS_AT_ONCE)
    return pa.concat_tables(
        _items_part(start, min(num_items - start, MAX_ROWS_AT_ONCE), num_items, generator) for start in starts
    )


def category_name(number: int) -> str:
    return f"Home & Living > Department {number // 50} > Shelf {number}"


def brand_name(number: int) -> str:
    return f"Brand No. {number}"


def num_brands(num_items: int) -> int:
    return max(10, num_items // ITEMS_A_BRAND)


def _items_part(start: int, num: int, num_items: int, generator: np.random.Generator) -> pa.Table:
    numbers = pc.cast(pa.array(np.arange(start, start + num)), pa.string())
    names = {
        "brand": ([brand_name(at) for at in range(num_brands(num_items))], 0.03),
        "category": ([category_name(at) for at in range(NUM_CATEGORIES)], 0.01),
    }
    chosen = {
        column: pa.array(values).take(_zipf(len(values), num, missing, generator))
        for column, (values, missing) in names.items()
    }
    pictures = _hex_digits(num, generator)
    columns = {
        "item_id": pc.binary_join_element_wise("B", pc.utf8_lpad(numbers, 9, "0"), ""),
        "title": pc.binary_join_element_wise(*_random_words(4, num, generator), numbers, " "),
        **chosen,
        "description": pc.binary_join_element_wise(*_random_words(24, num, generator), " "),
        "image_file": pc.binary_join_element_wise(pc.utf8_slice_codeunits(pictures, 0, 2), "/", pictures, ".jpg", ""),
        "image_url": pa.nulls(num, pa.string()),
    }
    return pa.table([columns[name] for name in CATALOG_SCHEMA.names], schema=CATALOG_SCHEMA)


def _zipf(num_values: int, num: int, missing: float, generator: np.random.Generator) -> pa.Array:
    """Numbers of values, the first ones most often; null for a share of `missing`."""
    weights = 1 / np.arange(1, num_values + 1)
    numbers = generator.choice(num_values, num, p=weights / weights.sum())
    return pa.array(numbers, mask=generator.random(num) < missing)


def _random_words(num_words: int, num: int, generator: np.random.Generator) -> list[pa.Array]:
    return [_WORDS.take(pa.array(generator.integers(0, len(_WORDS), num))) for _ in range(num_words)]


def _hex_digits(num: int, generator: np.random.Generator) -> pa.Array:
    """64 digits each, as pictures are named."""
    digits = generator.bytes(32 * num).hex().encode()
    offsets = np.arange(0, 64 * (num + 1), 64, dtype=np.int32)
    return pa.StringArray.from_buffers(num, pa.py_buffer(offsets), pa.py_buffer(digits))


def _segments(num_items: int, seed: int) -> Segments:
    """About 12 tokens an item."""
    generator = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(generator.integers(9, 16, num_items))])
    return Segments(generator.integers(0, 49_152, offsets[-1], np.int32), offsets)


def _features(num_items: int) -> ItemFeatures:
    generator = np.random.default_rng(0)
    rows = {signal: generator.standard_normal(FEATURE_WIDTHS[signal], np.float32) for signal in SIGNALS}
    return ItemFeatures(
        vectors={signal: np.broadcast_to(row, (num_items, len(row))) for signal, row in rows.items()},
        origin={signal: np.full(num_items, OWN, np.uint8) for signal in SIGNALS},
    )


def _item_vectors(path: Path, num_items: int, seed: int) -> npt.NDArray[np.float32]:
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (num_items, VECTOR_WIDTH))
    at = 0
    for block in World(VECTOR_WIDTH, seed=seed).items(num_items):
        vectors[at : at + len(block)] = block
        at += len(block)
    vectors.flush()
    return np.load(path, mmap_mode="r")

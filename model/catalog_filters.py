"""Which items belong to a category or a brand: the rows of each, on disk, and the filters made of them.

<attribute>.arrow   one row a distinct value, in order of `name`: name string, rows large_list<int64>, rising

A filter by one name is a part of the file, and others are made by merging such parts, so that the cost follows the
number of items found and not the size of the catalog. Knows nothing else of the items.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Set
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from model.bounded_cache import BoundedCache
from model.errors import ArtifactError

Rows = npt.NDArray[np.int64]

MAX_CACHED_BYTES = 128 * 2**20
"""Rows of recent filters that are kept: sixteen of a million items each."""
_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("rows", pa.large_list(pa.int64()), nullable=False),
    ]
)
_NUM_ITEMS = b"num_items"
"""Of the whole catalog, in the file's metadata."""
_NO_ROWS: Rows = np.empty(0, np.int64)


class RowsByName:
    """The rows of every distinct value of one attribute, memory-mapped."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._names = batch["name"]
        self._ends = batch["rows"].offsets.to_numpy()
        self._rows: Rows = batch["rows"].values.to_numpy()

    @classmethod
    def load(cls, path: Path, num_items: int) -> RowsByName:
        """Raises ArtifactError when the file is missing, damaged, or names rows beyond `num_items`."""
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            fits = reader.schema.equals(_SCHEMA) and reader.num_record_batches == 1
            found = cls(reader.get_batch(0)) if fits else None
        except (OSError, pa.ArrowException) as error:
            raise ArtifactError(f"{path} is missing or damaged ({error}): make the catalog again") from None
        if found is None or (reader.schema.metadata or {}).get(_NUM_ITEMS) != str(num_items).encode():
            raise ArtifactError(f"{path} does not hold rows of {num_items} items by name: make the catalog again")
        return found

    def __len__(self) -> int:
        """How many distinct values there are."""
        return len(self._names)

    def __contains__(self, name: str) -> bool:
        return self._number(name) is not None

    def rows(self, name: str) -> Rows:
        """Rows of the items of this value, rising; none when no item has it. Part of the file: read-only."""
        number = self._number(name)
        return _NO_ROWS if number is None else self._rows[self._ends[number] : self._ends[number + 1]]

    def rows_of_any(self, names: Set[str]) -> Rows:
        """Rows of the items of one of these values, rising. Part of the file where there is one name."""
        parts = [self.rows(name) for name in names]
        # Merges sorted runs: no row is in two of them.
        return parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts), kind="stable")

    def _number(self, name: str) -> int | None:
        # Arrow sorts text by its bytes in UTF-8, Python by code points: the same order.
        number = bisect_left(range(len(self)), name, key=lambda at: str(self._names[at]))
        return number if number < len(self) and str(self._names[number]) == name else None


class Filters:
    """Eligible rows by category and brand; recent ones are kept. For one thread at a time."""

    def __init__(self, categories: RowsByName, brands: RowsByName, max_cached_bytes: int = MAX_CACHED_BYTES) -> None:
        self.categories = categories
        self.brands = brands
        self._recent: BoundedCache[Rows] = BoundedCache(max_cached_bytes)

    def eligible_rows(self, categories: frozenset[str], brands: frozenset[str]) -> Rows | None:
        """Rows of the items of one of `categories` and of one of `brands`, rising; read-only.

        An empty set stands for any value or none. None when both are empty: every item is eligible.
        """
        if not categories and not brands:
            return None
        rows = self._recent.get((categories, brands))
        if rows is None:
            rows = self._find(categories, brands)
            rows.flags.writeable = False
            if rows.flags.owndata:  # a part of the file costs nothing to find again
                self._recent.put((categories, brands), rows, rows.nbytes)
        return rows

    def unknown(self, categories: frozenset[str], brands: frozenset[str]) -> tuple[str, ...]:
        """Those names that no item has, in order of the alphabet."""
        return tuple(
            sorted({c for c in categories if c not in self.categories} | {b for b in brands if b not in self.brands})
        )

    def _find(self, categories: frozenset[str], brands: frozenset[str]) -> Rows:
        if not brands:
            return self.categories.rows_of_any(categories)
        if not categories:
            return self.brands.rows_of_any(brands)
        return _common(self.categories.rows_of_any(categories), self.brands.rows_of_any(brands))


def write_rows_by_name(path: Path, values: pa.ChunkedArray) -> None:
    """Write the rows of every distinct value; a null belongs to none. `values`: string [N]."""
    names = pc.unique(values).drop_null().sort()
    number_N = pc.fill_null(pc.index_in(values, value_set=names), -1).to_numpy()
    by_name = np.argsort(number_N, kind="stable")
    ends = np.searchsorted(number_N[by_name], np.arange(len(names) + 1))
    rows = by_name[ends[0] :]
    lists = pa.LargeListArray.from_arrays(pa.array(ends - ends[0]), pa.array(rows))
    schema = _SCHEMA.with_metadata({_NUM_ITEMS: str(len(values))})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch([names, lists], schema=schema))


def _common(one: Rows, other: Rows) -> Rows:
    """Numbers that both have; both rise. Costs little more than the smaller has members."""
    small, large = sorted((one, other), key=len)
    if not len(small):
        return _NO_ROWS
    at = np.minimum(large.searchsorted(small), len(large) - 1)
    common: Rows = small[large[at] == small]
    return common

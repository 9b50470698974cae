"""The items of a catalog on disk: what people see of any row, and the row of any id.

items.arrow     every column, uncompressed, so that a row is read where it lies (CATALOG_SCHEMA)
item_ids.npy    uint64 [2, N]: a 64-bit hash of every id, rising; and the row that each belongs to

Nothing is read before it is asked for, and no Python object is kept per item. That ids are unique is proved where the
files are written.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from model.arrays import read_array
from model.errors import ArtifactError, InvalidInputError

TABLE_FILE, IDS_FILE = "items.arrow", "item_ids.npy"
CATALOG_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("brand", pa.string()),
        pa.field("category", pa.string()),
        pa.field("description", pa.string()),
        pa.field("image_file", pa.string()),  # below the store's images/: <2 hex>/<sha256>.<ext>
        pa.field("image_url", pa.string()),
    ]
)
_ROWS_A_BATCH = 65_536


class Items:
    """N items in rows 0 to N - 1. Safe for several threads."""

    def __init__(self, table: pa.Table, hashes_2N: npt.NDArray[np.uint64]) -> None:
        self.table = table
        """CATALOG_SCHEMA, memory-mapped"""
        self._num_items = int(table.num_rows)
        self._columns = {name: table[name] for name in table.column_names}
        self._hashes_N, self._rows_N = hashes_2N

    @classmethod
    def load(cls, folder: Path, num_items: int) -> Items:
        """Map both files; raises ArtifactError when one is missing, damaged, or not of `num_items` items."""
        path = folder / TABLE_FILE
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowException) as error:
            raise ArtifactError(f"{path} is missing or damaged ({error}): make the catalog again") from None
        if not table.schema.equals(CATALOG_SCHEMA) or table.num_rows != num_items:
            raise ArtifactError(
                f"{path} has {table.num_rows} rows of {table.schema.names}, not {num_items} catalog items"
            )
        return cls(table, read_array(folder / IDS_FILE, np.uint64, (2, num_items)))

    def __len__(self) -> int:
        return self._num_items

    def row(self, item_id: str) -> int | None:
        """Row of an item; None when there is no such item."""
        wanted = np.uint64(_hash(item_id))
        for at in range(int(self._hashes_N.searchsorted(wanted)), self._num_items):
            if self._hashes_N[at] != wanted:
                break
            row = int(self._rows_N[at])
            if self.item_id(row) == item_id:
                return row
        return None

    def item_id(self, row: int) -> str:
        """Id of the item of a row; raises IndexError outside [0, N)."""
        return str(self._columns["item_id"][self._checked(row)])

    def columns(self, row: int) -> dict[str, Any]:
        """What the table says of a row, by column; raises IndexError outside [0, N)."""
        row = self._checked(row)
        return {name: column[row].as_py() for name, column in self._columns.items()}

    def _checked(self, row: int) -> int:
        if not 0 <= row < self._num_items:
            raise IndexError(f"row {row} of a catalog of {self._num_items} items")
        return int(row)


def write_items(folder: Path, table: pa.Table) -> None:
    """Write both files. `table`: CATALOG_SCHEMA. Raises InvalidInputError when an item comes twice."""
    hashes_2N = _hashed_ids(table["item_id"])
    with pa.OSFile(str(folder / TABLE_FILE), "wb") as file, pa.ipc.new_file(file, CATALOG_SCHEMA) as writer:
        writer.write_table(table, max_chunksize=_ROWS_A_BATCH)
    np.save(folder / IDS_FILE, hashes_2N, allow_pickle=False)


def _hashed_ids(ids: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    hashes_N = np.fromiter(
        (_hash(item_id) for batch in _batches(ids) for item_id in batch.to_pylist()), np.uint64, len(ids)
    )
    rows_N = np.argsort(hashes_N, kind="stable")
    hashes_N = hashes_N[rows_N]
    _refuse_repeated(ids, hashes_N, rows_N)
    return np.stack([hashes_N, rows_N.astype(np.uint64)])


def _refuse_repeated(ids: pa.ChunkedArray, hashes_N: npt.NDArray[np.uint64], rows_N: npt.NDArray[np.int64]) -> None:
    """Equal ids have equal hashes, so only runs of equal hashes are looked at."""
    follows_equal = np.flatnonzero(hashes_N[1:] == hashes_N[:-1]) + 1
    suspects = ids.take(pa.array(np.unique(rows_N[np.r_[follows_equal - 1, follows_equal]]))).to_pylist()
    for item_id, num in Counter(suspects).items():
        if num > 1:
            raise InvalidInputError(f"item_id {item_id!r} comes {num} times: an item has one row", "item_id")


def _batches(column: pa.ChunkedArray) -> list[pa.ChunkedArray]:
    return [column.slice(start, _ROWS_A_BATCH) for start in range(0, len(column), _ROWS_A_BATCH)]


def _hash(item_id: str) -> int:
    # Of what is no valid text (lone surrogates), a hash all the same: no item has such an id.
    digest = hashlib.blake2b(item_id.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")

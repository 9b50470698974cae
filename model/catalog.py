"""One immutable version of everything that is served: items, segments, features, item vectors, index, popularity.

catalogs/
    CURRENT                     names the version that is served
    <version>/                  never changes once it is there
        items.parquet           what people and the prompt see of an item (CATALOG_SCHEMA)
        tokens.npy offsets.npy  segments, tokenised: int32 [T], int64 [N+1]
        <signal>.npy            features, float32 [N, width]
        <signal>_origin.npy     uint8 [N]: NOTHING, OWN, ALIGNED_TEXT (model/heads.py)
        item_vectors.npy        float32 [N, 3P]
        index.faiss             the same vectors, as FAISS's own file
        popularity.npy          int64 [N]: training events, 0 for items younger than the checkpoint
        manifest.json           hashes, counts, dims, encoders, checkpoint, checks; written last

Arrays stay on disk, memory-mapped, and item columns stay in Arrow. Knows neither how a version is made nor who asks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from model.artifacts import MANIFEST, read_manifest, replace_file
from model.config import SIGNALS, Signal
from model.errors import ArtifactError
from model.heads import NOTHING, ItemFeatures
from model.index import Index, load_index
from model.prompt import Segments

CURRENT = "CURRENT"
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
FILES = (
    "items.parquet",
    "tokens.npy",
    "offsets.npy",
    *(f"{signal}{part}.npy" for signal in SIGNALS for part in ("", "_origin")),
    "item_vectors.npy",
    "index.faiss",
    "popularity.npy",
)
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class CatalogItem:
    """One item as people see it."""

    item_id: str
    title: str
    brand: str | None
    category: str | None
    description: str | None
    image_file: str | None
    """Name below the store's `images/`."""
    image_url: str | None
    signals: dict[str, bool]
    """Whether each signal has a feature of this item, be it the stand-in from the aligned text tower."""


@dataclass(frozen=True, eq=False)
class Catalog:
    """N items, row-aligned in every attribute."""

    folder: Path
    manifest: Mapping[str, Any]
    items: pa.Table
    """CATALOG_SCHEMA"""
    item_ids: list[str]
    segments: Segments
    features: ItemFeatures
    item_vectors: npt.NDArray[np.float32]
    """[N, 3P]"""
    index: Index
    popularity: npt.NDArray[np.int64]
    """Training events of every item."""
    _row_of: dict[str, int]

    @classmethod
    def load(cls, folder: Path, verify: bool = True, device: str = "cpu") -> Catalog:
        """Open a version; `verify` reads and hashes every file first. `device`: where the index searches.

        Raises ArtifactError naming the file that is missing, truncated, altered, or does not fit the others.
        """
        manifest = read_manifest(folder, verify=verify)
        _check_manifest(folder, manifest)
        items = _read_items(folder / "items.parquet", manifest["counts"]["items"])
        item_ids: list[str] = items["item_id"].to_pylist()
        vectors = _read_array(folder / "item_vectors.npy", np.float32, (len(item_ids), manifest["dims"]["vector"]))
        return cls(
            folder=folder,
            manifest=manifest,
            items=items,
            item_ids=item_ids,
            segments=_read_segments(folder, len(item_ids)),
            features=_read_features(folder, len(item_ids), manifest["dims"]),
            item_vectors=vectors,
            index=load_index(folder / "index.faiss", vectors, device),
            popularity=_read_array(folder / "popularity.npy", np.int64, (len(item_ids),)),
            _row_of=_unique_rows(item_ids, folder / "items.parquet"),
        )

    @property
    def version(self) -> str:
        return str(self.manifest["version"])

    @property
    def checkpoint_id(self) -> str:
        return str(self.manifest["checkpoint"])

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    def row(self, item_id: str) -> int | None:
        """Row of an item; None when this version does not have it."""
        return self._row_of.get(item_id)

    def item_id(self, row: int) -> str:
        """Id of the item of a row; raises IndexError outside [0, N)."""
        self._check_row(row)
        return str(self.items["item_id"][int(row)])

    def item(self, row: int) -> CatalogItem:
        """The item of a row; raises IndexError outside [0, N)."""
        self._check_row(row)
        columns = {name: self.items[name][row].as_py() for name in CATALOG_SCHEMA.names}
        signals = {str(signal): bool(self.features.origin[signal][row] != NOTHING) for signal in SIGNALS}
        return CatalogItem(**columns, signals=signals)

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.num_items:
            raise IndexError(f"row {row} of a catalog of {self.num_items} items")


def current_version(catalogs: Path) -> str | None:
    """The version that is served; None before the first is published. Raises ArtifactError when CURRENT is damaged."""
    path = catalogs / CURRENT
    try:
        version = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return None
    if not _VERSION.fullmatch(version):
        raise ArtifactError(
            f"{path} names no version ({version[:80]!r}): choose one with offline/reindex.py --rollback"
        )
    return version


def set_current(catalogs: Path, version: str) -> None:
    """Serve `version` from now on. Readers see the old name or the new one, never a part."""
    require_version(catalogs, version)
    replace_file(catalogs / CURRENT, f"{version}\n".encode())


def require_version(catalogs: Path, version: str) -> None:
    """Raise ArtifactError, with the versions there are, where `version` is not a whole one."""
    if version not in list_versions(catalogs):
        known = ", ".join(list_versions(catalogs)) or "none yet"
        raise ArtifactError(f"{catalogs / version} is not a whole catalog version; there are: {known}")


def list_versions(catalogs: Path) -> list[str]:
    """Whole versions, oldest first."""
    return sorted(path.parent.name for path in catalogs.glob(f"*/{MANIFEST}") if _VERSION.fullmatch(path.parent.name))


def _check_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    for name in FILES:
        if name not in manifest["files"]:
            raise ArtifactError(f"{folder / MANIFEST} does not vouch for {name}: make the catalog again")
    try:
        known = {"version": str, "checkpoint": str, "counts": dict, "dims": dict}
        whole = manifest["kind"] == "catalog" and all(isinstance(manifest[key], kind) for key, kind in known.items())
        numbers = [manifest["counts"]["items"], *(manifest["dims"][key] for key in (*SIGNALS, "vector"))]
    except KeyError as error:
        raise ArtifactError(f"{folder / MANIFEST} lacks {error}: make the catalog again") from None
    if not whole or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise ArtifactError(f"{folder / MANIFEST} is not the manifest of a catalog: make the catalog again")


def _read_items(path: Path, num_items: int) -> pa.Table:
    try:
        items = pq.read_table(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} is missing or damaged ({error}): make the catalog again") from None
    if not items.schema.equals(CATALOG_SCHEMA) or items.num_rows != num_items:
        raise ArtifactError(f"{path} has {items.num_rows} rows of {items.schema.names}, not {num_items} catalog items")
    return items.combine_chunks()


def _unique_rows(item_ids: list[str], path: Path) -> dict[str, int]:
    row_of = {item_id: row for row, item_id in enumerate(item_ids)}
    if len(row_of) != len(item_ids):
        raise ArtifactError(f"{path} has an item_id more than once: make the catalog again")
    return row_of


def _read_segments(folder: Path, num_items: int) -> Segments:
    tokens = _read_array(folder / "tokens.npy", np.int32, (None,))
    offsets = _read_array(folder / "offsets.npy", np.int64, (num_items + 1,))
    if offsets[0] != 0 or offsets[-1] != len(tokens) or (np.diff(offsets) < 0).any():
        raise ArtifactError(f"{folder / 'offsets.npy'} does not cut the {len(tokens)} tokens into segments")
    return Segments(tokens, offsets)


def _read_features(folder: Path, num_items: int, widths: Mapping[Signal, int]) -> ItemFeatures:
    return ItemFeatures(
        vectors={s: _read_array(folder / f"{s}.npy", np.float32, (num_items, widths[s])) for s in SIGNALS},
        origin={s: _read_array(folder / f"{s}_origin.npy", np.uint8, (num_items,)) for s in SIGNALS},
    )


def _read_array(path: Path, dtype: type[np.generic], shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
    """Map one array, never unpickling; None in `shape` stands for any length."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path} is missing or no plain array ({error}): make the catalog again") from None
    if not isinstance(array, np.ndarray):
        raise ArtifactError(f"{path} is no plain array: make the catalog again")
    fits = array.ndim == len(shape) and all(e in (None, a) for e, a in zip(shape, array.shape, strict=True))
    if array.dtype != dtype or not fits:
        wanted = f"{np.dtype(dtype)} {['any' if n is None else n for n in shape]}"
        raise ArtifactError(f"{path} holds {array.dtype} {list(array.shape)} where {wanted} belongs")
    return array

"""One immutable version of everything that is served: items, segments, features, item vectors, index, popularity.

catalogs/
    CURRENT                     names the version that is served
    <version>/                  never changes once it is there
        items.arrow             what people and the prompt see of an item (model/catalog_items.py)
        item_ids.npy            the row of every id (the same)
        categories.arrow        the rows of every category (model/catalog_filters.py)
        brands.arrow            the rows of every brand (the same)
        tokens.npy offsets.npy  segments, tokenised: int32 [T], int64 [N+1]
        <signal>.npy            features, float32 [N, width]
        <signal>_origin.npy     uint8 [N]: NOTHING, OWN, ALIGNED_TEXT (model/heads.py)
        item_vectors.npy        float32 [N, Q] (model/joined.py)
        index.faiss             of large catalogs: the index, as FAISS's own file (model/index_build.py)
        index_lists.npy         with it where it has lists: their centres and spread, float32 [L, Q + 1]
        popularity.npy          int64 [N]: training events, 0 for items younger than the checkpoint
        popular.npy             int64 [N]: rows by falling popularity, ties by row
        manifest.json           hashes, counts, dims, encoders, checkpoint, checks; written last

All files are memory-mapped: loading does not read them, and ten million items cost no more memory of our own than ten.
Knows neither how a version is made nor who asks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.arrays import read_array
from model.artifacts import MANIFEST, read_manifest, replace_file, verify_files
from model.catalog_filters import Filters, RowsByName
from model.catalog_items import Items
from model.config import SIGNALS, Signal
from model.errors import ArtifactError
from model.heads import NOTHING, ItemFeatures
from model.index import Index, load_index
from model.prompt import Segments

CURRENT = "CURRENT"
FORMAT = 2
"""Of the files of a version; raise when an older program or an older version would not fit."""
FILES = (
    "items.arrow",
    "item_ids.npy",
    "categories.arrow",
    "brands.arrow",
    "tokens.npy",
    "offsets.npy",
    *(f"{signal}{part}.npy" for signal in SIGNALS for part in ("", "_origin")),
    "item_vectors.npy",
    "popularity.npy",
    "popular.npy",
)
MAX_HASHED_BYTES = 8 * 2**30
"""Hashed at a load, in six seconds on one core; what a version holds beyond that is checked by samples.

Of ten million items that is all but item vectors and wide features; and what was hashed is in the page cache."""
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
    items: Items
    filters: Filters
    segments: Segments
    features: ItemFeatures
    item_vectors: npt.NDArray[np.float32]
    """[N, Q]"""
    index: Index
    popularity: npt.NDArray[np.int64]
    """Training events of every item."""
    popular: npt.NDArray[np.int64]
    """Rows by falling popularity, ties by row."""

    @classmethod
    def load(
        cls, folder: Path, verify: bool = True, device: str = "cpu", max_hashed_bytes: int | None = MAX_HASHED_BYTES
    ) -> Catalog:
        """Open a version. `device`: where the index searches.

        `verify` compares size and hash of every file first; files that do not fit in `max_hashed_bytes` (None: no
        limit), counted from the smallest, are hashed in samples only. Raises ArtifactError naming the file that is
        missing, truncated, altered, of another format, or does not fit the others.
        """
        manifest = read_manifest(folder, verify=False)
        _check_manifest(folder, manifest)
        if verify:
            verify_files(folder, manifest["files"], max_hashed_bytes)
        num_items = manifest["counts"]["items"]
        vectors = read_array(folder / "item_vectors.npy", np.float32, (num_items, manifest["dims"]["vector"]))
        return cls(
            folder=folder,
            manifest=manifest,
            items=Items.load(folder, num_items),
            filters=Filters(
                categories=RowsByName.load(folder / "categories.arrow", num_items),
                brands=RowsByName.load(folder / "brands.arrow", num_items),
            ),
            segments=_read_segments(folder, num_items),
            features=_read_features(folder, num_items, manifest["dims"]),
            item_vectors=vectors,
            index=load_index(folder, vectors, device, manifest.get("index")),
            popularity=read_array(folder / "popularity.npy", np.int64, (num_items,)),
            popular=read_array(folder / "popular.npy", np.int64, (num_items,)),
        )

    @property
    def version(self) -> str:
        return str(self.manifest["version"])

    @property
    def checkpoint_id(self) -> str:
        return str(self.manifest["checkpoint"])

    @property
    def num_items(self) -> int:
        return len(self.items)

    def row(self, item_id: str) -> int | None:
        """Row of an item; None when this version does not have it."""
        return self.items.row(item_id)

    def item_id(self, row: int) -> str:
        """Id of the item of a row; raises IndexError outside [0, N)."""
        return self.items.item_id(row)

    def item(self, row: int) -> CatalogItem:
        """The item of a row; raises IndexError outside [0, N)."""
        columns = self.items.columns(row)
        signals = {str(signal): bool(self.features.origin[signal][row] != NOTHING) for signal in SIGNALS}
        return CatalogItem(**columns, signals=signals)

    def most_popular(self, num: int, eligible: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
        """The first `num` rows by falling popularity, ties by row; among `eligible` (rising), where given."""
        if eligible is None:
            return self.popular[:num]
        events = self.popularity[eligible]
        if num < len(eligible):  # all above the lowest place, and those at it in order of their rows
            lowest = np.partition(events, len(events) - num)[len(events) - num]
            chosen = np.flatnonzero(events > lowest)
            ties = np.flatnonzero(events == lowest)[: num - len(chosen)]
            chosen = np.sort(np.concatenate([chosen, ties]))
            eligible, events = eligible[chosen], events[chosen]
        return eligible[np.argsort(-events, kind="stable")]

    def eligible_rows(self, categories: frozenset[str], brands: frozenset[str]) -> npt.NDArray[np.int64] | None:
        """Rows of the items of one of `categories` and of one of `brands`, rising and read-only.

        An empty set stands for any value or none; None when both are empty. Names that no item has match nothing.
        One thread at a time.
        """
        return self.filters.eligible_rows(categories, brands)

    def unknown_filters(self, categories: frozenset[str], brands: frozenset[str]) -> tuple[str, ...]:
        """Those names that no item has, in order of the alphabet."""
        return self.filters.unknown(categories, brands)


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
    if manifest.get("kind") == "catalog" and manifest.get("format") != FORMAT:
        raise ArtifactError(
            f"{folder} is a catalog of format {manifest.get('format', 1)}, and this program reads format {FORMAT}: "
            "run `python -m offline.reindex`"
        )
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


def _read_segments(folder: Path, num_items: int) -> Segments:
    tokens = read_array(folder / "tokens.npy", np.int32, (None,))
    offsets = read_array(folder / "offsets.npy", np.int64, (num_items + 1,))
    if offsets[0] != 0 or offsets[-1] != len(tokens) or (offsets[1:] < offsets[:-1]).any():
        raise ArtifactError(f"{folder / 'offsets.npy'} does not cut the {len(tokens)} tokens into segments")
    return Segments(tokens, offsets)


def _read_features(folder: Path, num_items: int, widths: Mapping[Signal, int]) -> ItemFeatures:
    return ItemFeatures(
        vectors={s: read_array(folder / f"{s}.npy", np.float32, (num_items, widths[s])) for s in SIGNALS},
        origin={s: read_array(folder / f"{s}_origin.npy", np.uint8, (num_items,)) for s in SIGNALS},
    )

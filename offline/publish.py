"""Catalog versions on disk: write one whole, name it, keep the last good ones, go back. Knows no encoder.

Every function that changes what is served needs `alone(catalogs)` around it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from model.artifacts import read_manifest
from model.catalog import FORMAT, Catalog, current_version, list_versions, require_version, set_current
from model.catalog_filters import write_rows_by_name
from model.catalog_items import write_items
from model.config import SIGNALS
from model.errors import ArtifactError, RecommenderError
from model.heads import ItemFeatures
from model.prompt import Segments

_STAMP = "%Y%m%dT%H%M%SZ"
_LOCK = ".lock"


class BusyError(RecommenderError):
    """Another job is changing the catalogs."""


@dataclass(frozen=True)
class Contents:
    """N items with all that a version says of them, row-aligned (see model/catalog.py)."""

    items: pa.Table
    """CATALOG_SCHEMA"""
    segments: Segments
    features: ItemFeatures
    item_vectors: npt.NDArray[np.float32]
    """[N, Q]"""
    popularity: npt.NDArray[np.int64]


def write_contents(folder: Path, contents: Contents) -> None:
    """Write every file of a catalog but its index and manifest. Raises InvalidInputError when an item comes twice."""
    write_items(folder, contents.items)
    write_rows_by_name(folder / "categories.arrow", contents.items["category"])
    write_rows_by_name(folder / "brands.arrow", contents.items["brand"])
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "tokens": contents.segments.tokens.astype(np.int32, copy=False),
        "offsets": contents.segments.offsets.astype(np.int64, copy=False),
        "item_vectors": contents.item_vectors,
        "popularity": contents.popularity,
        "popular": np.argsort(-contents.popularity, kind="stable"),
    }
    for signal in SIGNALS:
        arrays[signal] = contents.features.vectors[signal]
        arrays[f"{signal}_origin"] = contents.features.origin[signal]
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)


def describe(contents: Contents) -> dict[str, Any]:
    """`kind`, `format`, `counts` and `dims` of the manifest."""
    features = contents.features
    dims: dict[str, int] = {signal: features.vectors[signal].shape[1] for signal in SIGNALS}
    counts = {f"with_{signal}": int(np.count_nonzero(features.origin[signal])) for signal in SIGNALS}
    return {
        "kind": "catalog",
        "format": FORMAT,
        "counts": {"items": contents.items.num_rows, **counts},
        "dims": {**dims, "vector": contents.item_vectors.shape[1]},
    }


def new_version(catalogs: Path, content_hash: str) -> str:
    """A name later than every version there: UTC time, then six digits of `content_hash`."""
    now = datetime.now(UTC)
    versions = list_versions(catalogs)
    while versions and now.strftime(_STAMP) <= versions[-1].partition("-")[0]:
        now += timedelta(seconds=1)
    return f"{now.strftime(_STAMP)}-{content_hash[:6]}"


@contextmanager
def alone(catalogs: Path) -> Iterator[None]:
    """Hold the lock on the catalogs; the operating system gives it back however the process ends.

    Raises BusyError when another process holds it.
    """
    catalogs.mkdir(parents=True, exist_ok=True)
    with (catalogs / _LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise BusyError(
                f"another reindex (process {holder}) is at work on {catalogs}: wait for it to end"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def remove_leftovers(catalogs: Path) -> int:
    """Delete what killed jobs left unfinished. Returns how many folders and files there were."""
    leftovers = [path for suffix in ("tmp", "old") for path in catalogs.glob(f".*.{suffix}")]
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return len(leftovers)


def remove_old(catalogs: Path, keep: int) -> list[str]:
    """Delete all but the newest `keep` versions beside the current one. Returns the deleted versions.

    A service that still serves a deleted version keeps its open files.
    """
    current = current_version(catalogs)
    others = [version for version in list_versions(catalogs) if version != current]
    doomed = others[: max(0, len(others) - keep)]
    for version in doomed:
        # Renamed first: a version is whole or not there, also when this is killed half-way.
        retired = catalogs / f".{version}.{uuid.uuid4().hex[:8]}.old"
        (catalogs / version).rename(retired)
        shutil.rmtree(retired)
    return doomed


def rollback(catalogs: Path, version: str | None = None) -> tuple[str, list[str]]:
    """Serve `version` again, or else the last good one from before the current.

    Verifies it first. Returns the version now served, and a line for each damaged one that was passed over. Raises
    ArtifactError when there is none or the named one is damaged; the current one then stays.
    """
    passed_over: list[str] = []
    for candidate in [version] if version else _earlier(catalogs):
        try:
            require_version(catalogs, candidate)
            Catalog.load(catalogs / candidate, max_hashed_bytes=None)
            set_current(catalogs, candidate)
        except ArtifactError as error:
            if version:
                raise
            passed_over.append(f"{candidate}: {error}")
        else:
            return candidate, passed_over
    damaged = f" ({'; '.join(passed_over)})" if passed_over else ""
    raise ArtifactError(f"{catalogs} has no earlier version that is whole{damaged}: the current one stays")


def _earlier(catalogs: Path) -> list[str]:
    """Versions that may have been served before the current one: its parent, then older ones, newest first."""
    current = current_version(catalogs)
    if current is None:
        return []
    older = [version for version in reversed(list_versions(catalogs)) if version < current]
    parent = parent_of(catalogs, current)
    return sorted(older, key=lambda version: version != parent)


def parent_of(catalogs: Path, version: str) -> str | None:
    """The version that was served when `version` was made."""
    try:
        parent: str | None = read_manifest(catalogs / version, verify=False).get("parent")
    except ArtifactError:
        return None
    return parent


def store_picture(source: Path, name: str, images: Path, *, link: bool) -> None:
    """Put a picture below `images` under its content-addressed `name`. Safe to repeat and to kill.

    `link`: a hard link where the file system allows it, for sources that never change; else a copy.
    """
    final = images / name
    if final.exists():
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
    if not (link and _linked(source, temporary)):
        shutil.copyfile(source, temporary)
    temporary.replace(final)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        return False
    return True

"""The items that a catalog is made of: out of a dataset, or out of an items file that has no interactions beside it.

Also what their pictures are (hash and format), and how two sets of items differ. Knows no encoder and no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from model.artifacts import read_manifest, sha256_file
from model.catalog_items import CATALOG_SCHEMA
from model.errors import ArtifactError, InvalidInputError
from offline.dataset import ITEM_SCHEMA
from offline.ingest.download import Downloader, DownloadSettings, is_url
from offline.ingest.generic import GENERIC
from offline.ingest.pictures import BadPictureError, PictureLimits, place, read_local
from offline.ingest.records import UNTITLED, RawItem
from offline.ingest.sources import RowFile

_EXTENSION_OF = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}
_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class ItemSource:
    """Items as ITEM_SCHEMA, ordered by id; `image` is a path below `folder`."""

    items: pa.Table
    folder: Path
    never_change: bool
    """Whether the pictures belong to a finished dataset, so that they may be hard-linked."""
    remarks: tuple[str, ...] = ()
    """What the operator should know of the rows that were left out."""


@dataclass(frozen=True)
class Pictures:
    """Per item, in row order."""

    sources: list[Path | None]
    files: list[str | None]
    """Content-addressed name, `<2 hex>/<sha256>.<extension>`; None without a usable picture."""

    def only(self, chosen_N: npt.NDArray[np.bool_]) -> Pictures:
        """These, without the files of items that are not chosen."""
        return Pictures(self.sources, [name if c else None for name, c in zip(self.files, chosen_N, strict=True)])


@dataclass(frozen=True)
class Difference:
    """How many items came, went, and look different."""

    added: int
    removed: int
    changed: int


def load_items(path: Path, work: Path, downloads: Path | None) -> ItemSource:
    """Items of a dataset folder, or of a JSON lines, CSV or Parquet file as `offline.ingest generic` reads it.

    `work` takes the usable pictures of a file and must outlive the result; `downloads` keeps those that it names by URL
    (None: they are not fetched). Raises ArtifactError for a damaged dataset and InvalidInputError for a file that is
    not one of items.
    """
    if not path.exists():
        raise InvalidInputError(f"--items {path} does not exist: give a dataset's folder or an items file", "items")
    return _from_dataset(path) if path.is_dir() else _from_file(path, work, downloads)


def identify_pictures(source: ItemSource) -> Pictures:
    """Hash every picture and find out its format."""
    names = source.items["image"].to_pylist()
    paths = [source.folder / name if name else None for name in names]
    hashed = tqdm(paths, desc="pictures", unit=" items", disable=None, leave=False)
    return Pictures(paths, [_content_name(path) if path else None for path in hashed])


def catalog_items(items: pa.Table, pictures: Pictures) -> pa.Table:
    """ITEM_SCHEMA to CATALOG_SCHEMA: the picture's path gives way to its content-addressed name."""
    at = CATALOG_SCHEMA.get_field_index("image_file")
    table = items.set_column(at, CATALOG_SCHEMA.field(at), pa.array(pictures.files, pa.string()))
    return table.cast(CATALOG_SCHEMA).combine_chunks()


def content_hash(items: pa.Table) -> str:
    """Equal for equal rows, however the table is stored."""
    digest = hashlib.sha256()
    for batch in items.to_batches(_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def difference(old: pa.Table | None, new: pa.Table) -> Difference:
    """Compare two tables of CATALOG_SCHEMA by item_id."""
    if old is None:
        return Difference(added=new.num_rows, removed=0, changed=0)
    at = pc.index_in(new["item_id"], value_set=old["item_id"])
    kept = new.filter(pc.is_valid(at))
    before = old.take(pc.drop_null(at))
    differs = pa.array([False] * kept.num_rows, pa.bool_())
    for name in CATALOG_SCHEMA.names:
        same = pc.fill_null(pc.equal(kept[name], before[name]), False)
        both_null = pc.and_(pc.is_null(kept[name]), pc.is_null(before[name]))
        differs = pc.or_(differs, pc.invert(pc.or_(same, both_null)))
    return Difference(
        added=new.num_rows - kept.num_rows,
        removed=old.num_rows - kept.num_rows,
        changed=pc.sum(differs).as_py() or 0,
    )


def _from_dataset(folder: Path) -> ItemSource:
    """The items of a dataset; its interactions are not read."""
    read_manifest(folder)
    items = pq.read_table(folder / "items.parquet")
    if not items.schema.equals(ITEM_SCHEMA):
        raise ArtifactError(
            f"{folder / 'items.parquet'} has columns {items.schema.names}: run `python -m offline.ingest`"
        )
    return ItemSource(items.sort_by("item_id"), folder, never_change=True)


def _from_file(path: Path, work: Path, downloads: Path | None) -> ItemSource:
    rows = RowFile(path, GENERIC.item_columns, "generic items")
    found: dict[str, RawItem] = {}
    for item in rows.parsed(GENERIC.item):
        found[item.item_id] = found[item.item_id].completed_by(item) if item.item_id in found else item
    items = [found[item_id] for item_id in sorted(found)]
    pictures, failures = _usable_pictures(items, path.parent, downloads)
    (work / "images").mkdir()
    images = {key: place(p, work / "images", key, extension) for key, (p, extension) in pictures.items()}
    columns = [
        {
            "item_id": item.item_id,
            "title": item.title or UNTITLED,
            "brand": item.brand,
            "category": item.category,
            "description": item.description,
            "image": images.get(item.item_id),
            "image_url": next(filter(is_url, item.pictures), None),
        }
        for item in items
    ]
    remarks = [f"{path.name}: {rows.bad.total:,} of {rows.rows:,} rows left out"] if rows.bad.total else []
    remarks += [f"  {bad['reason']}, first: {bad['examples'][0]}" for bad in rows.bad.as_json()]
    if failures:
        remarks.append(f"{path.name}: {len(failures):,} items without their picture, first: {failures[0]}")
    return ItemSource(pa.Table.from_pylist(columns, ITEM_SCHEMA), work, never_change=False, remarks=tuple(remarks))


def _usable_pictures(
    items: Iterable[RawItem], base: Path, downloads: Path | None
) -> tuple[dict[str, tuple[Path, str]], list[str]]:
    """Path and extension of the first usable picture by item id; and a line for every item that names none usable."""
    usable: dict[str, tuple[Path, str]] = {}
    failures: dict[str, str] = {}
    urls_of: dict[str, list[str]] = {}
    for item in items:
        for name in (name for name in item.pictures if not is_url(name)):
            try:
                usable[item.item_id] = read_local(base, name, PictureLimits())
                break
            except BadPictureError as bad:
                failures.setdefault(item.item_id, str(bad))
        urls = [name for name in item.pictures if is_url(name)]
        if urls and item.item_id not in usable:
            urls_of[item.item_id] = urls
    if urls_of and downloads is not None:
        fetched = Downloader(downloads, DownloadSettings(), PictureLimits()).fetch_all(urls_of)
        usable |= {key: (picture.path, picture.extension) for key, picture in fetched.items() if picture.path}
        failures |= {key: f"{picture.url}: {picture.outcome}" for key, picture in fetched.items() if not picture.path}
    return usable, [f"{key}: {why}" for key, why in failures.items() if key not in usable]


def _content_name(path: Path) -> str | None:
    """The name by content; None when these bytes are no picture. The extension is the true format."""
    try:
        with Image.open(path, formats=list(_EXTENSION_OF)) as picture:
            extension = _EXTENSION_OF[str(picture.format)]
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing, though the items name it: run the job that made the items") from None
    except (OSError, Image.DecompressionBombError, Image.DecompressionBombWarning, ValueError):
        return None
    sha256 = sha256_file(path)
    return f"{sha256[:2]}/{sha256}.{extension}"

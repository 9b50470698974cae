"""The ingest job: events, filter, items, pictures, tables, report; published as one dataset folder."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from model.artifacts import MANIFEST, building, is_up_to_date, read_manifest, sha256_file, write_json, write_manifest
from model.errors import ArtifactError, InvalidInputError
from offline import dataset
from offline.dataset import INTERACTION_SCHEMA, ITEM_SCHEMA
from offline.ingest import events as event_arrays
from offline.ingest.amazon import AMAZON_2018, AMAZON_2023
from offline.ingest.download import Downloader, DownloadSettings, Picture, is_url
from offline.ingest.events import Events
from offline.ingest.generic import GENERIC, pictures_of
from offline.ingest.pictures import BadPictureError, PictureLimits, local_path, place, read_local
from offline.ingest.records import UNTITLED, RawFormat, RawItem
from offline.ingest.report import Report
from offline.ingest.sources import RowFile

FORMATS = {raw_format.name: raw_format for raw_format in (GENERIC, AMAZON_2018, AMAZON_2023)}
DOWNLOADS = ".downloads"
"""Folder beside the dataset's: pictures by hash of their URL, kept between runs and shared by datasets."""
KIND = "dataset"


@dataclass(frozen=True)
class Arguments:
    """What the job does; saved beside what it makes."""

    format: str
    """A key of FORMATS."""
    events: Path
    """The interactions or reviews file."""
    items: Path
    """The items or metadata file; local pictures lie below its folder."""
    out: Path
    """The dataset folder to make, or to replace."""
    k_core: int = 5
    num_test: int = 1
    """A user's newest events that are the test; the one before them is validation."""
    keep_unknown_items: bool = True
    """Whether events of items that the items file does not have count. If so, such an item appears without a title."""
    download: bool = True
    downloads: DownloadSettings = field(default_factory=DownloadSettings)
    pictures: PictureLimits = field(default_factory=PictureLimits)
    force: bool = False
    """Run even if the result is up to date; failed downloads are tried again."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InvalidInputError(f"format {self.format!r}: choose from {', '.join(FORMATS)}", "format")
        for value, name in (
            (self.k_core, "k-core"),
            (self.num_test, "test-events"),
            (self.downloads.attempts, "download-attempts"),
        ):
            if value < 1:
                raise InvalidInputError(f"--{name} is {value}: it must be at least 1", name)
        if self.downloads.concurrency < 1:
            raise InvalidInputError("--download-concurrency must be at least 1", "download-concurrency")


def run(arguments: Arguments) -> str:
    """Make the dataset of `offline/dataset.py` unless it is up to date. Returns what to tell the operator.

    Raises InvalidInputError for a file that is not what it claims and when no event survives.
    """
    _check_paths(arguments)
    inputs = _inputs(arguments)
    if not arguments.force and is_up_to_date(arguments.out, inputs):
        return f"{arguments.out} is up to date; --force makes it again"
    report = Report(arguments.format)
    raw_format = FORMATS[arguments.format]
    events = _filtered_events(arguments, raw_format, report)
    kept_ids = {events.item_ids[code] for code in set(events.item_E.tolist())}
    items = _items(arguments, raw_format, kept_ids, report)
    with building(arguments.out) as folder:
        images = _placed_pictures(arguments, raw_format, items, folder, report)
        _write_items(items, images, folder)
        _write_interactions(events, arguments.num_test, folder, report)
        write_json(folder / "report.json", report.as_json())
        (folder / "report.md").write_text(report.as_markdown(), encoding="utf-8")
        write_manifest(folder, {"kind": KIND, "inputs": inputs, "counts": _counts(events, report)})
    return f"{report.summary()}\n\n{arguments.out} is ready; what was dropped and why: {arguments.out / 'report.md'}"


def _check_paths(arguments: Arguments) -> None:
    """Refuse to replace a folder that this job did not make, and to delete its own input with the old result."""
    out = arguments.out.resolve()
    for path in (arguments.events, arguments.items):
        if not path.is_file():
            raise InvalidInputError(f"{path} is not a file", str(path))
        if path.resolve().is_relative_to(out):
            raise InvalidInputError(
                f"--out {arguments.out} holds the input {path}, and would be replaced: choose another"
            )
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        made_here = out.is_dir() and read_manifest(out, verify=False).get("kind") == KIND
    except ArtifactError:
        made_here = False
    if not made_here:
        raise InvalidInputError(
            f"--out {arguments.out} exists and is not a dataset ({MANIFEST} says no such thing)", "out"
        )


def _inputs(arguments: Arguments) -> dict[str, Any]:
    """All that the result depends on; paths are left out, so that a moved folder is still up to date."""
    settings = asdict(arguments)
    for irrelevant in ("events", "items", "out", "force"):
        del settings[irrelevant]
    return {
        "arguments": settings,
        "files": {
            "events": {"name": arguments.events.name, "sha256": sha256_file(arguments.events)},
            "items": {"name": arguments.items.name, "sha256": sha256_file(arguments.items)},
        },
        "local_pictures": _local_pictures_state(arguments) if FORMATS[arguments.format].local_pictures else None,
        "code": _code_version(),
    }


def _local_pictures_state(arguments: Arguments) -> str:
    """Hash of name, size and modification time of every local picture that the items name."""
    state = sha256()
    base = arguments.items.parent
    for names in RowFile(arguments.items, GENERIC.item_columns, "generic items").parsed(pictures_of):
        for name in names:
            if not is_url(name):
                state.update(f"{name}\x1f{_stamp(base, name)}\n".encode())
    return state.hexdigest()


def _stamp(base: Path, name: str) -> str:
    try:
        status = local_path(base, name).stat()
    except (OSError, ValueError, BadPictureError):
        return "none"
    return f"{status.st_size} {status.st_mtime_ns}"


def _code_version() -> str:
    """Hash of the sources that make a dataset: another version of them makes it again."""
    sources = [*sorted(Path(__file__).parent.glob("*.py")), Path(dataset.__file__)]
    return sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def _filtered_events(arguments: Arguments, raw_format: RawFormat, report: Report) -> Events:
    """Events that survive every filter, in the order of the dataset."""
    file = RowFile(arguments.events, raw_format.event_columns, f"{raw_format.name} interactions")
    events = event_arrays.collect(file.parsed(raw_format.event))
    report.files.append(file)
    report.step("read", events, f"{file.bad.total:,} bad rows left out" if file.bad.total else "")
    if not arguments.keep_unknown_items:
        rows = RowFile(arguments.items, raw_format.item_columns, f"{raw_format.name} items")
        events = events.of_items(set(rows.parsed(raw_format.item_id)))
        report.step("only items of the items file", events)
    events = event_arrays.first_of_each_pair(events)
    report.step("one event a (user, item)", events, "the earliest")
    events, rounds = event_arrays.k_core(events, arguments.k_core, arguments.num_test)
    report.step(f"{arguments.k_core}-core", events, f"{rounds} rounds" if rounds else "nothing fell out")
    if not len(events):
        before = report.steps[-2]
        raise InvalidInputError(
            f"no event survives the {arguments.k_core}-core of {before.events:,} events by {before.users:,} users on "
            f"{before.items:,} items: lower --k-core, or check that both files belong together",
            "k-core",
        )
    events, tied = event_arrays.in_order(events)
    report.step("in order of time", events, f"{tied:,} share their second with another event of the user")
    return events


def _items(arguments: Arguments, raw_format: RawFormat, kept_ids: set[str], report: Report) -> list[RawItem]:
    """One item for every id, ordered by id. Only these are held in memory, however long the file."""

    def cleaned_if_kept(values: dict[str, Any]) -> RawItem | None:
        return raw_format.item(values) if raw_format.item_id(values) in kept_ids else None

    found: dict[str, RawItem] = {}
    file = RowFile(arguments.items, raw_format.item_columns, f"{raw_format.name} items")
    repeated = 0
    for item in filter(None, file.parsed(cleaned_if_kept)):
        if item.item_id in found:
            repeated += 1
            report.item_remarks.add("id comes twice", item.item_id)
            found[item.item_id] = found[item.item_id].completed_by(item)
        else:
            found[item.item_id] = item
    report.files.append(file)
    items = [found.get(item_id) or RawItem(item_id) for item_id in sorted(kept_ids)]
    for item in items:
        if item.item_id not in found:
            report.item_remarks.add("not in the items file", item.item_id)
        elif item.title is None:
            report.item_remarks.add("title unusable", f"{item.item_id}: {item.raw_title}")
    report.items |= {
        "rows of items that did not survive": file.rows - file.bad.total - len(found) - repeated,
        "repeated rows": repeated,
        "items": len(items),
        "not in the items file": len(items) - len(found),
        "with a title": sum(item.title is not None for item in items),
        "with a brand": sum(item.brand is not None for item in items),
        "with a category": sum(item.category is not None for item in items),
        "with a description": sum(item.description is not None for item in items),
    }
    return items


def _placed_pictures(
    arguments: Arguments, raw_format: RawFormat, items: list[RawItem], folder: Path, report: Report
) -> list[tuple[str | None, str | None]]:
    """Per item the path of its picture below `folder` and its URL; pictures are put into `folder`/images."""
    images = folder / "images"
    images.mkdir()
    found = _local_pictures(arguments, items) if raw_format.local_pictures else {}
    urls_of = {
        item.item_id: urls
        for item in items
        if (urls := [name for name in item.pictures if is_url(name)])
        and (item.item_id not in found or not found[item.item_id].path)
    }
    found |= _downloaded(arguments, urls_of, report)
    placed: list[tuple[str | None, str | None]] = []
    for item in items:
        picture = found.get(item.item_id, Picture(outcome="none named"))
        report.pictures[picture.outcome] = report.pictures.get(picture.outcome, 0) + 1
        if picture.path:
            placed.append((place(picture.path, images, item.item_id, picture.extension), picture.url or None))
            continue
        if item.item_id in found:
            report.picture_failures.add(picture.outcome, f"{item.item_id}: {picture.url} {picture.detail}".rstrip())
        placed.append((None, picture.url or None))
    report.pictures = dict(sorted(report.pictures.items(), key=lambda pair: (-pair[1], pair[0])))
    return placed


def _local_pictures(arguments: Arguments, items: list[RawItem]) -> dict[str, Picture]:
    """The first usable local picture of every item that names one, or what is wrong with its first."""
    base = arguments.items.parent

    def check(item: RawItem) -> Picture:
        failures = []
        for name in (name for name in item.pictures if not is_url(name)):
            try:
                path, extension = read_local(base, name, arguments.pictures)
            except BadPictureError as bad:
                failures.append(Picture(outcome=bad.reason, detail=bad.detail))
            else:
                return Picture(path, extension, outcome="local")
        return failures[0]

    naming = [item for item in items if any(not is_url(name) for name in item.pictures)]
    with ThreadPoolExecutor() as pool:  # Pillow decodes without holding the interpreter's lock
        checked = tqdm(pool.map(check, naming), desc="checking pictures", total=len(naming), disable=None)
        return {item.item_id: picture for item, picture in zip(naming, checked, strict=True)}


def _downloaded(arguments: Arguments, urls_of: dict[str, list[str]], report: Report) -> dict[str, Picture]:
    if not arguments.download:
        return {
            key: Picture(url=urls[0], outcome="not downloaded", detail="--no-download") for key, urls in urls_of.items()
        }
    if not urls_of:
        return {}
    downloader = Downloader(arguments.out.resolve().parent / DOWNLOADS, arguments.downloads, arguments.pictures)
    pictures = downloader.fetch_all(urls_of)
    report.hosts_given_up = downloader.reachability.given_up
    return pictures


def _write_items(items: list[RawItem], images: list[tuple[str | None, str | None]], folder: Path) -> None:
    rows: Iterable[dict[str, str | None]] = (
        {
            "item_id": item.item_id,
            "title": item.title or UNTITLED,
            "brand": item.brand,
            "category": item.category,
            "description": item.description,
            "image": image,
            "image_url": url,
        }
        for item, (image, url) in zip(items, images, strict=True)
    )
    pq.write_table(pa.Table.from_pylist(list(rows), schema=ITEM_SCHEMA), folder / "items.parquet")


def _write_interactions(events: Events, num_test: int, folder: Path, report: Report) -> None:
    splits = event_arrays.leave_last_out(events, num_test)
    report.splits = {split: splits.count(split) for split in ("train", "validation", "test")}
    columns = [
        [events.user_ids[code] for code in events.user_E.tolist()],
        [events.item_ids[code] for code in events.item_E.tolist()],
        events.time_E,
        splits,
    ]
    pq.write_table(pa.table(columns, schema=INTERACTION_SCHEMA), folder / "interactions.parquet")


def _counts(events: Events, report: Report) -> dict[str, int]:
    with_picture = sum(report.pictures.get(outcome, 0) for outcome in ("local", "downloaded", "from an earlier run"))
    return {
        "events": len(events),
        "users": events.num_users,
        "items": events.num_items,
        "pictures": with_picture,
        **report.splits,
    }

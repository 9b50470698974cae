"""Make a new catalog version from items and a checkpoint, without training, and publish it.

    python offline/reindex.py                                   the checkpoint's dataset
    python offline/reindex.py --items new-items.jsonl           items that nobody has bought yet are welcome
    python offline/reindex.py --rollback                        serve the version from before again

The old version is served until the new one is whole and checked; killed at any moment, this changes nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

if not __package__:  # run as a file: its own folder on the path would hide installed modules of the same names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from model.artifacts import (
    MANIFEST,
    building,
    fingerprint,
    is_up_to_date,
    read_manifest,
    sha256_file,
    write_json,
    write_manifest,
)
from model.catalog import Catalog, current_version, list_versions, set_current
from model.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint
from model.config import SIGNALS
from model.encoder import UserEncoder
from model.errors import ArtifactError, RecommenderError
from model.heads import NOTHING, OWN, ItemFeatures
from model.index_build import DEFAULT_MIN_RECALL, choose_kind, write_index
from model.index_kinds import KINDS, Kind
from model.language_model import choose_device, load_language_model, load_tokenizer
from model.prompt import PromptBuilder, build_segments
from model.ranking import Query, Ranking
from model.recommender import Recommender
from model.store import Store
from offline.checks import check_canaries, check_contents, check_index, check_recall, check_removals, index_recall
from offline.encoders import load_image_encoder, load_text_encoder
from offline.features import FeatureSignal, SignalFeatures, embed_items
from offline.ingest.job import DOWNLOADS
from offline.items import (
    Difference,
    ItemSource,
    Pictures,
    catalog_items,
    content_hash,
    difference,
    identify_pictures,
    load_items,
)
from offline.jobs import add_store
from offline.publish import (
    BusyError,
    Contents,
    alone,
    describe,
    new_version,
    remove_leftovers,
    remove_old,
    rollback,
    store_picture,
    write_contents,
)

PUBLISHED, REFUSED, UNUSABLE, BUSY = 0, 1, 2, 3
EXIT_CODES = """exit status:
  0  published, nothing to do, or a dry run that would have been published
  1  the new version did not pass its checks; the old one is still served
  2  an argument, item file or artifact cannot be used; the old one is still served
  3  another reindex is at work on the same store"""
CODE_VERSION = 3
"""Raise when the same inputs would give another catalog."""
NUM_CANARY_RESULTS = 10


class RefusedError(RecommenderError):
    """The new version did not pass; `problems` says why."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Options:
    """What one run does."""

    store: Store
    config: str = "demo"
    """The newest checkpoint of this configuration is used."""
    checkpoint: str | None = None
    """Or the one of this id."""
    items: Path | None = None
    """Dataset folder or items file, the whole catalog; unset: the dataset of the checkpoint."""
    download: bool = True
    """Whether to fetch pictures that an items file names by URL."""
    dry_run: bool = False
    force: bool = False
    """Publish even if nothing changed."""
    keep: int = 5
    """Old versions that stay for rollback."""
    max_removed: float = 0.5
    """Share of the current items that may leave at once."""
    index: Kind | Literal["auto"] = "auto"
    """How items are searched (model/index_kinds.py)."""
    min_recall: float = DEFAULT_MIN_RECALL
    """Share of the true ten best that an approximate index must find."""


@dataclass
class Steps:
    """Seconds that every step took, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time the body as `name`, and say that it began."""
        tqdm.write(f"reindex: {name}", file=sys.stderr)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


@dataclass(frozen=True)
class Inputs:
    """What a version is made from."""

    checkpoint: Checkpoint
    source: ItemSource
    pictures: Pictures
    parent: str | None
    """The version served while this one is made."""
    facts: dict[str, Any]
    """Hashes of all of it: equal facts give an equal catalog."""


Embedded = dict[FeatureSignal, SignalFeatures]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    store = Store(arguments.store)
    try:
        if arguments.list:
            print(describe_versions(store.catalogs))
        elif arguments.rollback is not None:
            print(roll_back(store, arguments.rollback or None))
        else:
            print(reindex(_options(arguments), Steps()))
    except RefusedError as refused:
        print(_refusal(refused, store), file=sys.stderr)
        return REFUSED
    except BusyError as error:
        print(f"error: {error}", file=sys.stderr)
        return BUSY
    except RecommenderError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    return PUBLISHED


def reindex(options: Options, steps: Steps) -> str:
    """Make, check and publish one version. Returns what to tell the operator.

    Raises RefusedError when a check does not hold; whatever is raised, the version served before stays.
    """
    store = options.store
    with alone(store.catalogs):
        remove_leftovers(store.catalogs)
        with TemporaryDirectory(dir=store.catalogs, prefix=".items.", suffix=".tmp") as work:
            with steps.step("load"):
                inputs = load_inputs(options, Path(work))
            if not options.force and _is_current(store, inputs):
                return f"nothing changed: {inputs.parent} stays (publish all the same with --force)"
            return _reindex(inputs, options, steps)


def _reindex(inputs: Inputs, options: Options, steps: Steps) -> str:
    store = options.store
    version = new_version(store.catalogs, fingerprint(inputs.facts))
    with steps.step("embed"):
        embedded = embed(inputs, store)
    with steps.step("assemble"):
        contents = assemble(inputs, embedded, store)
    with steps.step("check contents"):
        changes = check_before_writing(inputs, contents, options)
    with _folder_for(version, options) as folder:
        with steps.step("write"):
            write_contents(folder, contents)
        with steps.step("index"):
            index = build_index(folder, contents, inputs, options)
        with steps.step("describe"):
            write_version(folder, version, contents, inputs, index)
        with steps.step("check ranking"):
            checks = check_before_publishing(folder, inputs, store)
        if not options.dry_run:
            with steps.step("pictures"):
                store_pictures(inputs, contents.items, store)
        manifest = add_checks(folder, checks)
    deleted: list[str] = []
    if not options.dry_run:
        with steps.step("serve"):
            set_current(store.catalogs, version)
        with steps.step("clean up"):
            deleted = remove_old(store.catalogs, options.keep)
    return _summary(manifest, inputs, embedded, changes, deleted, options, steps)


def load_inputs(options: Options, work: Path) -> Inputs:
    """Load checkpoint and items, and identify pictures and encoders. Raises ArtifactError when they do not fit."""
    store = options.store
    folder = store.checkpoints / options.checkpoint if options.checkpoint else latest_checkpoint(store, options.config)
    checkpoint = load_checkpoint(folder)
    check_encoders(checkpoint, store)
    path = options.items or store.dataset(checkpoint.config.dataset)
    source = load_items(path, work, store.root / "datasets" / DOWNLOADS if options.download else None)
    pictures = identify_pictures(source)
    facts = {
        "checkpoint": {"id": checkpoint.id, "manifest": sha256_file(folder / MANIFEST)},
        "items": content_hash(catalog_items(source.items, pictures)),
        "index": {"kind": options.index, "min_recall": options.min_recall},
        "code": CODE_VERSION,
    }
    return Inputs(checkpoint, source, pictures, current_version(store.catalogs), facts)


def check_encoders(checkpoint: Checkpoint, store: Store) -> None:
    """The encoders at hand are those whose features the checkpoint was trained on; their weights are not read."""
    config, device = checkpoint.config, str(choose_device())
    at_hand = {
        "image": load_image_encoder(config.vision, store.models, device).fingerprint,
        "text": load_text_encoder(config.text, store.models, device).fingerprint,
    }
    for signal, found in at_hand.items():
        trained_on = checkpoint.encoders[signal]
        if found != trained_on:
            section = "vision" if signal == "image" else "text"
            raise ArtifactError(
                f"the {signal} encoder has fingerprint {found}, but checkpoint {checkpoint.id} was trained on "
                f"{trained_on}: weights or dtype of {section}.source {getattr(config, section).source!r} differ; use "
                f"those of the training (fix {section}.revision and {section}.dtype there), or train again"
            )


def embed(inputs: Inputs, store: Store) -> Embedded:
    """Image and text features; only contents that no earlier run encoded go through an encoder."""
    device = str(choose_device())
    return embed_items(inputs.source.items, inputs.source.folder, inputs.checkpoint.config, store, device)


def assemble(inputs: Inputs, embedded: Embedded, store: Store) -> Contents:
    """Everything that a version holds, row-aligned."""
    checkpoint, source = inputs.checkpoint, inputs.source
    item_ids = source.items["item_id"].to_pylist()
    cf_vectors, cf_origin = known_cf(checkpoint, item_ids)
    features = ItemFeatures(
        vectors={"image": embedded["image"].vectors, "cf": cf_vectors, "text": embedded["text"].vectors},
        origin={"image": embedded["image"].origin, "cf": cf_origin, "text": embedded["text"].origin},
    )
    tokenizer = load_tokenizer(checkpoint.config.language_model, store.models)
    checkpoint.joined.to(choose_device())
    return Contents(
        items=catalog_items(source.items, inputs.pictures.only(features.origin["image"] == OWN)),
        segments=build_segments(tokenizer, source.items, checkpoint.config.prompt),
        features=features,
        item_vectors=checkpoint.joined.item_vectors(features),
        popularity=np.array([checkpoint.num_events.get(item_id, 0) for item_id in item_ids], np.int64),
    )


def known_cf(checkpoint: Checkpoint, item_ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """CF vectors float32 [N, width] and origin uint8 [N]; an item younger than the checkpoint has none."""
    rows = np.array([checkpoint.cf_rows.get(item_id, -1) for item_id in item_ids], np.int64)
    is_known = rows >= 0
    vectors = np.zeros((len(rows), checkpoint.cf_vectors.shape[1]), np.float32)
    vectors[is_known] = checkpoint.cf_vectors[rows[is_known]]
    return vectors, np.where(is_known, OWN, NOTHING).astype(np.uint8)


def check_before_writing(inputs: Inputs, contents: Contents, options: Options) -> Difference:
    """How the items differ from those served now. Raises RefusedError when ids, dims, numbers or signals are wrong."""
    before = _items_of(options.store, inputs.parent)
    changes = difference(before, contents.items)
    problems = check_contents(contents, inputs.checkpoint.joined)
    if before is not None:
        problems += check_removals(before.num_rows, changes.removed, options.max_removed)
    if problems:
        raise RefusedError(problems)
    return changes


def build_index(folder: Path, contents: Contents, inputs: Inputs, options: Options) -> dict[str, Any]:
    """Write the index; returns what the manifest says of it. Raises RefusedError when it finds too little."""
    vectors = np.load(folder / "item_vectors.npy", mmap_mode="r")
    kind = choose_kind(*vectors.shape) if options.index == "auto" else options.index
    users = None if kind == "exact" else canary_users(inputs.checkpoint, contents, options.store)
    facts = write_index(folder, vectors, kind, options.min_recall, users)
    if problems := check_index(facts):
        raise RefusedError(problems)
    return facts


def canary_users(checkpoint: Checkpoint, contents: Contents, store: Store) -> np.ndarray | None:
    """User vectors float32 [U, Q] of the checkpoint's canary histories; None where no item of them is left."""
    row_of = {item_id: row for row, item_id in enumerate(contents.items["item_id"].to_pylist())}
    histories = [np.array([row_of[i] for i in history if i in row_of], np.int64) for history in checkpoint.canaries]
    known = [history for history in histories if len(history)]
    if not known:
        return None
    language_model = load_language_model(checkpoint.config.language_model, store.models, choose_device())
    checkpoint.joined.to(language_model.device)
    builder = PromptBuilder(language_model.tokenizer, checkpoint.config.prompt)
    encoder = UserEncoder(language_model, checkpoint.heads, builder, contents.segments, contents.features)
    return checkpoint.joined.user_vectors(encoder.encode(known), known, contents.features)


def write_version(folder: Path, version: str, contents: Contents, inputs: Inputs, index: dict[str, Any]) -> None:
    """Write the manifest, last of all files."""
    facts = {
        "version": version,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "parent": inputs.parent,
        "checkpoint": inputs.checkpoint.id,
        "encoders": inputs.checkpoint.encoders,
        "inputs": inputs.facts,
        **describe(contents),
        "index": index,
    }
    write_manifest(folder, facts)


def check_before_publishing(folder: Path, inputs: Inputs, store: Store) -> dict[str, Any]:
    """Load the version as the service will, search it and rank with it. Raises RefusedError."""
    catalog = Catalog.load(folder)
    recall = index_recall(catalog)
    rankings = rank_canaries(inputs.checkpoint, catalog, store)
    problems = check_recall(catalog, recall) + check_canaries(rankings)
    if problems:
        raise RefusedError(problems)
    return {"recall": recall, "canaries": [[item.item_id for item in ranking.items] for ranking in rankings]}


def rank_canaries(checkpoint: Checkpoint, catalog: Catalog, store: Store) -> list[Ranking]:
    """Rank the checkpoint's canary histories by the code that serves; those without a known item are left out."""
    known = [history for history in checkpoint.canaries if any(catalog.row(item) is not None for item in history)]
    if not known:
        return []
    language_model = load_language_model(checkpoint.config.language_model, store.models, choose_device())
    recommender = Recommender(checkpoint, catalog, language_model, store)
    return recommender.rank([Query(history, k=NUM_CANARY_RESULTS) for history in known])


def store_pictures(inputs: Inputs, items: pa.Table, store: Store) -> None:
    """Put the pictures that the items name among the content-addressed ones."""
    names = items["image_file"].to_pylist()
    pairs = tqdm(zip(inputs.pictures.sources, names, strict=True), total=len(names), desc="storing", disable=None)
    for source, name in pairs:
        if source and name:
            store_picture(source, name, store.images, link=inputs.source.never_change)


def add_checks(folder: Path, checks: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest once more, with the outcome of the checks. Returns it."""
    manifest = {**read_manifest(folder, verify=False), "checks": checks}
    write_json(folder / MANIFEST, manifest)
    return manifest


def roll_back(store: Store, version: str | None) -> str:
    """Serve `version`, or the last good one from before; returns what to tell the operator."""
    with alone(store.catalogs):
        before = current_version(store.catalogs)
        served, passed_over = rollback(store.catalogs, version)
    lines = [f"passed over {line}" for line in passed_over]
    return "\n".join([*lines, f"catalog {served} is served now (before: {before or 'none'})"])


def describe_versions(catalogs: Path) -> str:
    """One line a version, oldest first; the served one is marked."""
    current = current_version(catalogs)
    lines = [f"{'':2}{'version':26}{'items':>9}  {'checkpoint':24}{'made from':26}"]
    for version in list_versions(catalogs):
        manifest = read_manifest(catalogs / version, verify=False)
        mark = "* " if version == current else "  "
        facts = f"{manifest['counts']['items']:>9,}  {manifest['checkpoint']:24}{manifest['parent'] or '-':26}"
        lines.append(f"{mark}{version:26}{facts}".rstrip())
    return "\n".join(lines) if len(lines) > 1 else f"no catalog in {catalogs} yet"


def _is_current(store: Store, inputs: Inputs) -> bool:
    return inputs.parent is not None and is_up_to_date(store.catalogs / inputs.parent, inputs.facts)


def _items_of(store: Store, version: str | None) -> pa.Table | None:
    """Items of a version; None when there is none, or it is damaged, in which case publishing is the remedy."""
    try:
        return Catalog.load(store.catalogs / version, verify=False).items.table if version else None
    except ArtifactError:
        return None


@contextmanager
def _folder_for(version: str, options: Options) -> Iterator[Path]:
    """Where a version is built: it takes its place at a clean end, or, in a dry run, is thrown away."""
    catalogs = options.store.catalogs
    if options.dry_run:
        with TemporaryDirectory(dir=catalogs, prefix=f".{version}.", suffix=".tmp") as folder:
            yield Path(folder)
    else:
        with building(catalogs / version) as new:
            yield new


def _summary(
    manifest: dict[str, Any],
    inputs: Inputs,
    embedded: Embedded,
    changes: Difference,
    deleted: list[str],
    options: Options,
    steps: Steps,
) -> str:
    counts, checks = manifest["counts"], manifest["checks"]
    recall = ", ".join(f"{name} {value:.4f}" for name, value in checks["recall"].items())
    with_signals = ", ".join(f"{signal} {counts['with_' + signal]:,}" for signal in SIGNALS)
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in steps.seconds.items())
    lines = [
        f"catalog {manifest['version']} {'would be' if options.dry_run else 'is'} served now",
        f"  checkpoint  {manifest['checkpoint']}",
        f"  items       {counts['items']:,} ({changes.added:,} added, {changes.removed:,} removed, "
        f"{changes.changed:,} changed)",
        f"  with        {with_signals}",
        f"  encoded     {', '.join(f'{signal} {found.num_encoded:,}' for signal, found in embedded.items())}"
        " (all others from the cache)",
        f"  index       {_index_line(manifest['index'])}",
        f"  checks      {recall}; {_canary_line(checks['canaries'], _canaries_of(options.store, inputs.parent))}",
        f"  seconds     {seconds}",
    ]
    lines += [f"  deleted     {version}" for version in deleted]
    problems = (problem for found in embedded.values() for problem in found.problems)
    lines += [f"  note        {remark}" for remark in (*inputs.source.remarks, *problems)]
    if inputs.parent and not options.dry_run:
        lines.append(f"  to go back  python -m offline.reindex --store {options.store.root} --rollback {inputs.parent}")
    return "\n".join(lines)


def _index_line(facts: dict[str, Any]) -> str:
    if facts["kind"] == "exact":
        return "exact"
    parameters = ", ".join(f"{name} {value:g}" for name, value in facts["parameters"].items())
    found = ", ".join(f"{name} {value:.4f}" for name, value in facts["recall"].items())
    return f"{facts['kind']} ({parameters}), {facts['bytes'] / 2**20:,.0f} MiB, {found} for made-up users"


def _canaries_of(store: Store, version: str | None) -> list[list[str]]:
    try:
        checks = read_manifest(store.catalogs / version, verify=False)["checks"] if version else {}
    except (ArtifactError, KeyError):
        return []
    canaries: list[list[str]] = checks.get("canaries", [])
    return canaries


def _canary_line(now: list[list[str]], before: list[list[str]]) -> str:
    if not now:
        return "no canary history has an item of this catalog"
    line = f"{len(now)} canary histories rank"
    if len(before) != len(now):
        return line
    same = sum(len(set(a) & set(b)) for a, b in zip(now, before, strict=True))
    return f"{line}, {same} of {sum(map(len, now))} results as before"


def _refusal(refused: RefusedError, store: Store) -> str:
    served = current_version(store.catalogs)
    stays = f"catalog {served} is still served" if served else "no catalog is served yet"
    return "\n".join(["refused: nothing was published", *(f"  {problem}" for problem in refused.problems), stays])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_store(parser)
    parser.add_argument("--config", default="demo", help="take this configuration's newest checkpoint (default: demo)")
    parser.add_argument("--checkpoint", metavar="ID", help="or the checkpoint of this id")
    parser.add_argument(
        "--items",
        type=Path,
        metavar="PATH",
        help="the whole catalog: a dataset folder, or items as JSON lines, CSV or Parquet (default: the checkpoint's "
        "dataset)",
    )
    parser.add_argument("--no-download", action="store_true", help="do not fetch pictures that --items names by URL")
    parser.add_argument("--force", action="store_true", help="publish even if nothing changed")
    parser.add_argument("--keep", type=_count, default=5, metavar="N", help="old versions that stay (default: 5)")
    parser.add_argument(
        "--max-removed",
        type=float,
        default=Options.max_removed,
        metavar="SHARE",
        help="refuse when a larger share of the current items would leave (default: 0.5)",
    )
    parser.add_argument(
        "--index",
        choices=["auto", *KINDS],
        default=Options.index,
        help="how items are searched: exact, or approximately by lists (ivf-*) or a graph (hnsw, on a processor only) "
        "(default: auto, exact for small catalogs and ivf-sq8 for large ones)",
    )
    parser.add_argument(
        "--min-recall",
        type=_share,
        default=Options.min_recall,
        metavar="SHARE",
        help="refuse an approximate index that finds a smaller share of the true ten best (default: 0.99)",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="build and check, publish nothing")
    instead.add_argument("--list", action="store_true", help="show the versions; * is served")
    instead.add_argument(
        "--rollback",
        nargs="?",
        const="",
        metavar="VERSION",
        help="serve VERSION, or the last good one from before the current, after verifying it",
    )
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1; for all of them take --index exact")
    return share


def _options(arguments: argparse.Namespace) -> Options:
    return Options(
        store=Store(arguments.store),
        config=arguments.config,
        checkpoint=arguments.checkpoint,
        items=arguments.items,
        download=not arguments.no_download,
        dry_run=arguments.dry_run,
        force=arguments.force,
        keep=arguments.keep,
        max_removed=arguments.max_removed,
        index=arguments.index,
        min_recall=arguments.min_recall,
    )


if __name__ == "__main__":
    sys.exit(main())

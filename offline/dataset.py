"""The dataset that `ingest` writes and every later job reads. Knows no raw format and no model.

`items.parquet`: one row an item, ordered by item_id; the row number is the item's identity inside a dataset.
`interactions.parquet`: one row an event, ordered by user, then time, then the tie rule (see `tie_key`); `split` is
`test` (the last event of a user, or the last few), `validation` (the one before) or `train`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.artifacts import fingerprint, read_manifest

ITEM_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("brand", pa.string()),
        pa.field("category", pa.string()),
        pa.field("description", pa.string()),
        pa.field("image", pa.string()),  # path below the dataset's folder; null: no usable picture
        pa.field("image_url", pa.string()),
    ]
)
INTERACTION_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),  # seconds since 1970
        pa.field("split", pa.string(), nullable=False),
    ]
)


def tie_key(user_id: str, item_id: str) -> str:
    """Orders events of one user in the same second: by hash, so that the order tells nothing of items or file."""
    return hashlib.sha256(f"{user_id}\x1f{item_id}".encode()).hexdigest()


@dataclass(frozen=True)
class Cases:
    """C times that someone chose an item: whose, after what, and which. A user's cases follow each other."""

    users: np.ndarray
    """int64 [C]"""
    histories: list[np.ndarray]
    """Item rows, oldest first."""
    targets: np.ndarray
    """int64 [C]"""

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Dataset:
    """N items and the histories of U users, as row numbers of `items`."""

    folder: Path
    items: pa.Table
    users: list[str]
    events: list[np.ndarray]
    """Per user: int32 item rows, oldest first; the last `num_test` are test targets, the one before validates."""
    manifest_hash: str
    num_test: int = 1
    hidden: np.ndarray | None = None
    """bool [N]: items whose events are no training events, as if they were new; None: no item."""

    @property
    def num_items(self) -> int:
        return int(self.items.num_rows)

    @cached_property
    def item_ids(self) -> list[str]:
        return list(self.items["item_id"].to_pylist())

    def train_events(self, user: int) -> np.ndarray:
        """Item rows of one user without validation and test targets."""
        events = self.events[user][: -1 - self.num_test]
        return events if self.hidden is None else events[~self.hidden[events]]

    def validation_target(self, user: int) -> int:
        """The item row that follows `train_events`."""
        return int(self.events[user][-1 - self.num_test])

    @cached_property
    def training_hash(self) -> str:
        """Equal for equal items, events and hidden items: what CF is trained from."""
        hidden = "" if self.hidden is None else fingerprint(self.hidden.tolist())[:16]
        return self.manifest_hash + hidden

    def validation_cases(self, users: Iterable[int] | None = None) -> Cases:
        """The validation event of some users (None: of all), after their training events."""
        chosen = list(range(len(self.users)) if users is None else users)
        return Cases(
            users=np.array(chosen),
            histories=[self.train_events(user) for user in chosen],
            targets=np.array([self.validation_target(user) for user in chosen]),
        )

    def test_cases(self) -> Cases:
        """Every test event, with all that came before it, validation and earlier test events included."""
        pairs = [
            (user, len(self.events[user]) - at) for user in range(len(self.users)) for at in range(self.num_test, 0, -1)
        ]
        return Cases(
            users=np.array([user for user, _ in pairs]),
            histories=[self.events[user][:at] for user, at in pairs],
            targets=np.array([self.events[user][at] for user, at in pairs]),
        )

    @cached_property
    def num_train_events(self) -> np.ndarray:
        """int64[N]: training events of every item; the popularity ranking sorts by it."""
        rows = np.concatenate([self.train_events(user) for user in range(len(self.users))])
        return np.bincount(rows, minlength=self.num_items)


def dataset_hashes(folder: Path) -> list[str]:
    """SHA-256 of both tables, by the manifest: what tells one dataset from another without reading it."""
    files = read_manifest(folder, verify=False)["files"]
    return [files[name]["sha256"] for name in ("items.parquet", "interactions.parquet")]


def items_fingerprint(folder: Path) -> str:
    """Equal for equal items and pictures, by the manifest: what image and text features are made from."""
    files = read_manifest(folder, verify=False)["files"]
    return fingerprint(
        {name: facts["sha256"] for name, facts in files.items() if name.startswith(("items.parquet", "images/"))}
    )


def load_dataset(folder: Path) -> Dataset:
    """Read what `offline.ingest` wrote. Raises ArtifactError when it is missing or damaged."""
    manifest = read_manifest(folder)
    items = pq.read_table(folder / "items.parquet")
    interactions = pq.read_table(folder / "interactions.parquet")
    row_of = {item_id: row for row, item_id in enumerate(items["item_id"].to_pylist())}
    users: list[str] = []
    events: list[list[int]] = []
    for user_id, item_id in zip(interactions["user_id"].to_pylist(), interactions["item_id"].to_pylist(), strict=True):
        if not users or users[-1] != user_id:
            users.append(user_id)
            events.append([])
        events[-1].append(row_of[item_id])
    return Dataset(
        folder=folder,
        items=items,
        users=users,
        events=[np.array(rows, np.int32) for rows in events],
        manifest_hash=manifest["files"]["interactions.parquet"]["sha256"][:16]
        + manifest["files"]["items.parquet"]["sha256"][:16],
        num_test=interactions["split"].to_pylist().count("test") // len(users) if users else 1,
    )

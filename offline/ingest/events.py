"""Events as arrays: one per pair, k-core, order, split. Knows no file.

Shapes: E events; users and items are numbered in order of first appearance.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from offline.dataset import tie_key
from offline.ingest.records import RawEvent

Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Events:
    user_ids: list[str]
    item_ids: list[str]
    user_E: Index
    item_E: Index
    time_E: Index
    """Seconds since 1970."""

    def __len__(self) -> int:
        return len(self.user_E)

    @property
    def num_users(self) -> int:
        return len(np.unique(self.user_E))

    @property
    def num_items(self) -> int:
        return len(np.unique(self.item_E))

    def take(self, chosen: npt.NDArray[np.bool_] | Index) -> Events:
        """The events chosen by mask or by index, in that order."""
        return replace(self, user_E=self.user_E[chosen], item_E=self.item_E[chosen], time_E=self.time_E[chosen])

    def of_items(self, known: set[str]) -> Events:
        """The events whose item is in `known`."""
        is_known = np.fromiter((item_id in known for item_id in self.item_ids), bool, len(self.item_ids))
        return self.take(is_known[self.item_E])

    def names(self, event: int) -> tuple[str, str]:
        """User id and item id of one event."""
        return self.user_ids[self.user_E[event]], self.item_ids[self.item_E[event]]


def collect(raw: Iterable[RawEvent]) -> Events:
    """Number the ids and pack the events: 24 bytes each, so that millions fit."""
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user_E, item_E, time_E = array("q"), array("q"), array("q")
    for event in raw:
        user_E.append(users.setdefault(event.user_id, len(users)))
        item_E.append(items.setdefault(event.item_id, len(items)))
        time_E.append(event.timestamp)
    return Events(list(users), list(items), *(np.array(column, np.int64) for column in (user_E, item_E, time_E)))


def first_of_each_pair(events: Events) -> Events:
    """One event per (user, item): the earliest."""
    order = np.lexsort((events.time_E, events.item_E, events.user_E))
    user_E, item_E = events.user_E[order], events.item_E[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (user_E[1:] != user_E[:-1]) | (item_E[1:] != item_E[:-1])
    return events.take(np.sort(order[is_first]))


def k_core(events: Events, k: int, num_test: int = 1) -> tuple[Events, int]:
    """The largest part in which every item has at least k events and every user max(k, num_test + 2).

    So every user has a training event, a validation event and `num_test` test events.

    Needs one event per pair. Returns the events and the number of rounds until nothing more fell out. The result is
    unique: it does not depend on the order of the events.
    """
    rounds = 0
    while True:
        per_user = np.bincount(events.user_E, minlength=1)
        per_item = np.bincount(events.item_E, minlength=1)
        stays = (per_user[events.user_E] >= max(k, num_test + 2)) & (per_item[events.item_E] >= k)
        if stays.all():
            return events, rounds
        events, rounds = events.take(stays), rounds + 1


def in_order(events: Events) -> tuple[Events, int]:
    """Sorted by user id, then time, then `tie_key`; and how many events tie with another of their user."""
    codes_by_id = sorted(range(len(events.user_ids)), key=events.user_ids.__getitem__)
    rank_of_user = np.argsort(np.array(codes_by_id, np.int64))
    order = np.lexsort((events.time_E, rank_of_user[events.user_E]))
    user_E, time_E = events.user_E[order], events.time_E[order]
    starts = np.flatnonzero(np.r_[True, (user_E[1:] != user_E[:-1]) | (time_E[1:] != time_E[:-1])])
    lengths = np.diff(np.r_[starts, len(order)])
    for start, length in zip(starts[lengths > 1], lengths[lengths > 1], strict=True):
        tied = order[start : start + length]
        order[start : start + length] = sorted(tied, key=lambda event: tie_key(*events.names(event)))
    return events.take(order), int(lengths[lengths > 1].sum())


def leave_last_out(events: Events, num_test: int) -> list[str]:
    """Split of every event, for events that are `in_order`: a user's last `num_test` are `test`, the one before them
    `validation`."""
    ends = np.flatnonzero(np.r_[events.user_E[1:] != events.user_E[:-1], True])
    split_E = np.full(len(events), "train", dtype="<U10")
    split_E[ends[:, None] - np.arange(num_test)] = "test"
    split_E[ends - num_test] = "validation"
    return [str(split) for split in split_E]

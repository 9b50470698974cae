"""Pairs, k-core, order and split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.dataset import tie_key
from offline.ingest.events import Events, collect, first_of_each_pair, in_order, k_core, leave_last_out
from offline.ingest.records import RawEvent

EVENTS = st.lists(
    st.builds(RawEvent, st.integers(0, 12).map("u{}".format), st.integers(0, 10).map("i{}".format), st.integers(0, 5)),
    max_size=150,
)
K = st.integers(1, 5)


def triples(events: Events) -> list[tuple[str, str, int]]:
    return [(*events.names(e), int(events.time_E[e])) for e in range(len(events))]


def slow_k_core(pairs: set[tuple[str, str]], k: int) -> set[tuple[str, str]]:
    """One user or item removed at a time, in the order of names."""
    while True:
        users = {u for u, _ in pairs if sum(u == v for v, _ in pairs) < max(k, 3)}
        items = {i for _, i in pairs if sum(i == j for _, j in pairs) < k}
        if not users and not items:
            return pairs
        fallen = min(users or items)
        pairs = {pair for pair in pairs if fallen not in pair}


@given(EVENTS)
def test_of_repeated_pairs_the_earliest_remains(raw: list[RawEvent]) -> None:
    first: dict[tuple[str, str], int] = {}
    for event in raw:
        pair = (event.user_id, event.item_id)
        first[pair] = min(event.timestamp, first.get(pair, event.timestamp))
    assert sorted(triples(first_of_each_pair(collect(raw)))) == sorted((*pair, time) for pair, time in first.items())


@given(EVENTS, K)
def test_the_k_core_equals_removing_one_at_a_time(raw: list[RawEvent], k: int) -> None:
    pairs = first_of_each_pair(collect(raw))
    core, _ = k_core(pairs, k)
    assert {(u, i) for u, i, _ in triples(core)} == slow_k_core({(u, i) for u, i, _ in triples(pairs)}, k)


@given(EVENTS, K)
def test_the_k_core_is_a_fixed_point(raw: list[RawEvent], k: int) -> None:
    core, _ = k_core(first_of_each_pair(collect(raw)), k)
    again, rounds = k_core(core, k)
    assert rounds == 0
    assert triples(again) == triples(core)


@given(EVENTS, K, st.randoms())
def test_the_result_does_not_depend_on_the_order_of_the_file(raw: list[RawEvent], k: int, random: object) -> None:
    shuffled = list(raw)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    results = [in_order(k_core(first_of_each_pair(collect(rows)), k)[0])[0] for rows in (raw, shuffled)]
    assert triples(results[0]) == triples(results[1])


@given(EVENTS)
def test_order_is_user_then_time_then_hash(raw: list[RawEvent]) -> None:
    ordered, tied = in_order(first_of_each_pair(collect(raw)))
    rows = triples(ordered)
    assert rows == sorted(rows, key=lambda row: (row[0], row[2], tie_key(row[0], row[1])))
    seconds = [(user, time) for user, _, time in rows]
    assert tied == sum(seconds.count(second) > 1 for second in seconds)


def test_the_last_event_is_the_test_and_the_one_before_the_validation() -> None:
    raw = [RawEvent(user, f"i{n}", n) for user in "ab" for n in range(4)]
    ordered, _ = in_order(collect(raw))
    assert leave_last_out(ordered, 1) == ["train", "train", "validation", "test"] * 2


def test_with_more_test_events_the_validation_lies_before_them_and_short_users_fall_out() -> None:
    raw = [RawEvent(user, f"i{n}", n) for user, num in (("a", 5), ("b", 4)) for n in range(num)]
    ordered, _ = in_order(k_core(collect(raw), 1, num_test=3)[0])
    assert leave_last_out(ordered, 3) == ["train", "validation", "test", "test", "test"]


@pytest.mark.parametrize("k", [1, 2])
def test_a_user_with_nothing_to_train_on_is_dropped_whatever_k(k: int) -> None:
    raw = [RawEvent("short", f"i{n}", n) for n in range(2)] + [
        RawEvent(user, f"i{n}", n) for user in "ab" for n in range(3)
    ]
    core, _ = k_core(collect(raw), k)
    assert core.num_users == 2
    assert core.num_items == 3


def test_events_of_unknown_items_can_be_left_out() -> None:
    events = collect([RawEvent("u", "known", 1), RawEvent("u", "unknown", 2)]).of_items({"known"})
    assert triples(events) == [("u", "known", 1)]
    assert events.time_E.dtype == np.int64

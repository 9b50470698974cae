"""Who goes with whom: full batches, and nobody overtaken for long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.line import Line

BUDGET, MOST = 100, 8


@dataclass(frozen=True, eq=False)
class Waiting:
    num_tokens: int


def batches_of(*sizes: int, max_requests: int = MOST) -> list[list[int]]:
    """The batches in which callers of these sizes go, who all wait from the start."""
    line: Line[Waiting] = Line(BUDGET, max_requests)
    for size in sizes:
        line.add(Waiting(size))
    batches = []
    while line:
        batches.append([one.num_tokens for one in line.take_batch()])
    return batches


def strictly_in_turn(sizes: Sequence[int]) -> list[int]:
    """The batch of each caller if no one were ever overtaken."""
    batch, tokens, requests, found = 0, 0, 0, []
    for size in sizes:
        if requests and (tokens + size > BUDGET or requests == MOST):
            batch, tokens, requests = batch + 1, 0, 0
        tokens, requests = tokens + size, requests + 1
        found.append(batch)
    return found


def test_callers_go_in_the_order_in_which_they_came() -> None:
    assert batches_of(30, 31, 32, 33, 34) == [[30, 31, 32], [33, 34]]


def test_a_batch_holds_no_more_requests_than_allowed() -> None:
    assert batches_of(1, 2, 3, max_requests=2) == [[1, 2], [3]]


def test_what_costs_nothing_is_bounded_by_requests_alone() -> None:
    assert batches_of(100, 0, 0, 0, max_requests=3) == [[100, 0, 0], [0]]


def test_short_ones_fill_up_what_a_long_one_leaves() -> None:
    assert batches_of(40, 70, 30, 20) == [[40, 30, 20], [70]]


def test_a_question_larger_than_the_budget_goes_alone() -> None:
    assert batches_of(500, 1) == [[500], [1]]


def test_short_ones_wait_for_one_of_several_long_ones_at_most() -> None:
    assert batches_of(100, 90, 100, 10, 10, 10) == [[100], [10, 10, 10], [90], [100]]


@given(st.lists(st.integers(0, 130), max_size=40))
def test_nobody_is_overtaken_for_ever(sizes: list[int]) -> None:
    line: Line[Waiting] = Line(BUDGET, MOST)
    callers = [Waiting(size) for size in sizes]
    for caller in callers:
        line.add(caller)
    went: dict[Waiting, int] = {}
    number = 0
    while line:
        went |= dict.fromkeys(line.take_batch(), number)
        number += 1
    in_turn = strictly_in_turn(sizes)
    assert all(went[caller] <= 2 * turn for caller, turn in zip(callers, in_turn, strict=True))


@given(st.lists(st.integers(0, BUDGET // 2), max_size=40))
def test_among_short_ones_nobody_goes_later_than_strictly_in_turn(sizes: list[int]) -> None:
    line: Line[Waiting] = Line(BUDGET, MOST)
    callers = [Waiting(size) for size in sizes]
    for caller in callers:
        line.add(caller)
    in_turn = dict(zip(callers, strictly_in_turn(sizes), strict=True))
    number = 0
    while line:
        assert all(number <= in_turn[caller] for caller in line.take_batch())
        number += 1


def test_a_long_one_gets_its_turn_while_short_ones_keep_coming() -> None:
    line: Line[Waiting] = Line(BUDGET, MOST)
    long = Waiting(90)
    for one in (Waiting(40), Waiting(40), Waiting(40), long):
        line.add(one)
    num_batches = 0
    while long in line:
        line.add(Waiting(15))
        line.add(Waiting(15))
        line.take_batch()
        num_batches += 1
    assert num_batches == 3


@pytest.mark.parametrize(("sizes", "is_full"), [([99], False), ([99, 1], True), ([0] * 7, False), ([0] * 8, True)])
def test_a_line_fills_a_batch_by_tokens_or_by_requests(sizes: list[int], is_full: bool) -> None:
    line: Line[Waiting] = Line(BUDGET, MOST)
    for size in sizes:
        line.add(Waiting(size))
    assert line.fills_a_batch == is_full


def test_who_leaves_takes_their_tokens_along() -> None:
    line: Line[Waiting] = Line(BUDGET, MOST)
    stays, leaves = Waiting(30), Waiting(40)
    line.add(stays)
    line.add(leaves)
    line.discard(leaves)
    line.discard(leaves)
    assert (list(line), line.num_tokens) == ([stays], 30)

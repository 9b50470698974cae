"""Who waits, and who goes together. Knows neither time, threads, tensors nor HTTP.

A batch takes whoever has waited longest and then, in the order of arrival, everybody who still fits: shorter ones fill
up what a longer one leaves. That delays nobody: who would be in the n-th batch if no one were ever overtaken is in the
n-th at the latest, because only what lies before a question can keep it out.

A long question leaves little to fill up, and several in a row would hold up all the short ones behind them. So the
batch after one that began with a question of more than half the budget is filled from the shortest on. Two of those
never follow each other, so nobody waits for more than twice as many batches as without.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What can stand in the line."""

    @property
    def num_tokens(self) -> int:
        """What it takes of a batch's budget."""


T = TypeVar("T", bound=Sized)


class Line(Generic[T]):
    """Iterates over those who wait, in the order in which they came; each may stand in it once."""

    def __init__(self, max_tokens: int, max_requests: int) -> None:
        """A batch holds `max_tokens` and `max_requests` at most; one that is larger alone goes alone."""
        self._max_tokens = max_tokens
        self._max_requests = max_requests
        self._waiting: dict[T, None] = {}
        self._num_tokens = 0
        self._shortest_first = False

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[T]:
        return iter(self._waiting)

    @property
    def num_tokens(self) -> int:
        """Of all who wait."""
        return self._num_tokens

    @property
    def fills_a_batch(self) -> bool:
        return len(self) >= self._max_requests or self._num_tokens >= self._max_tokens

    def add(self, one: T) -> None:
        self._waiting[one] = None
        self._num_tokens += one.num_tokens

    def discard(self, one: T) -> None:
        """Take out who left; who is not in the line may be named too."""
        if one in self._waiting:
            del self._waiting[one]
            self._num_tokens -= one.num_tokens

    def take_batch(self) -> list[T]:
        """Take out those who go next; empty only when nobody waits."""
        order = sorted(self, key=lambda one: one.num_tokens) if self._shortest_first else list(self)
        batch: list[T] = []
        room = self._max_tokens
        for one in order:
            if len(batch) == self._max_requests:
                break
            if one.num_tokens <= room or not batch:
                batch.append(one)
                room -= one.num_tokens
        for one in batch:
            self.discard(one)
        began_long = bool(batch) and 2 * batch[0].num_tokens > self._max_tokens
        self._shortest_first = began_long and not self._shortest_first
        return batch

"""A memory of recent results, bounded in bytes: the least recently used leave first.

For one writer thread; `in` may be asked from another. Knows nothing of what it holds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Value = TypeVar("Value")
MEBIBYTE = 2**20


@dataclass(frozen=True)
class CacheSizes:
    """What may be remembered of people who were here lately; 0 remembers nothing."""

    user_vector_bytes: int = 32 * MEBIBYTE
    """User vectors, 768 bytes each at a width of 3 x 64: the same history again costs a search, no forward pass."""
    prefix_bytes: int = 256 * MEBIBYTE
    """Keys and values: a history that goes on costs its new items alone. A history of ten items takes about 4 MiB with
    SmolLM2-135M and 60 MiB with Sheared-LLaMA-2.7B."""


DEFAULT_CACHES = CacheSizes()


class BoundedCache(Generic[Value]):
    """Values of known size by key; never more than `max_bytes` in sum."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Value | None:
        """The value, from now on the most recently used; None where there is none."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Hashable, value: Value, num_bytes: int) -> None:
        """Keep a value as the most recently used. One that is larger than the whole cache is not kept."""
        self._forget(key)
        if num_bytes > self.max_bytes:
            return
        while self.num_bytes + num_bytes > self.max_bytes:
            self._forget(next(iter(self._entries)))
        self._entries[key] = value, num_bytes
        self.num_bytes += num_bytes

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.num_bytes = 0

    def _forget(self, key: Hashable) -> None:
        _, num_bytes = self._entries.pop(key, (None, 0))
        self.num_bytes -= num_bytes

"""Keys and values of the histories that were read, one entry a segment, so that a returning person's are not computed
again: a history that goes on where another one ended needs only its new items.

An entry is named by the whole history up to and including its segment, because what a decoder makes of a segment
depends on all that came before. Histories that begin alike share entries. The last segment of a history counts as used
before the first one does, so that the least recently used entry is never one that another still needs.

# K key heads, d head width, n tokens of a segment
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from model.bounded_cache import BoundedCache


class PrefixCache:
    """Bounded in bytes; for one thread."""

    def __init__(self, max_bytes: int) -> None:
        self._entries: BoundedCache[Tensor] = BoundedCache(max_bytes)

    @property
    def num_bytes(self) -> int:
        return self._entries.num_bytes

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def num_known(self, history: np.ndarray) -> int:
        """How many of the history's first items are known."""
        known = 0
        while known < len(history) and _key(history, known) in self._entries:
            known += 1
        return known

    def longest(self, history: np.ndarray) -> list[Tensor]:
        """Keys and values [layers, 2, n, K, d] of the longest known beginning of `history` (item rows), by segment."""
        found = [self._entries.get(_key(history, at)) for at in reversed(range(self.num_known(history)))]
        return [keys for keys in reversed(found) if keys is not None]

    def keep(self, history: np.ndarray, keys: Sequence[Tensor]) -> None:
        """Remember the keys and values of every segment of `history`, as much of them as fits: the first ones."""
        for at in reversed(range(len(keys))):
            key = _key(history, at)
            if key in self._entries:
                self._entries.get(key)
            else:
                self._entries.put(key, keys[at].clone(), keys[at].nbytes)


def _key(history: np.ndarray, at: int) -> bytes:
    return bytes(np.ascontiguousarray(history[: at + 1], np.int64).data)

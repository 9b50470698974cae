"""Counting what went wrong, and keeping a few examples of each."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

MAX_EXAMPLES = 1_000
"""Kept of one reason, for the JSON report."""


class Reasons:
    """How often each reason occurred, and its first examples in order of arrival."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, example: str) -> None:
        self.counts[reason] += 1
        if len(self.examples[reason]) < MAX_EXAMPLES:
            self.examples[reason].append(example)

    @property
    def total(self) -> int:
        return self.counts.total()

    def as_json(self) -> list[dict[str, Any]]:
        """Most frequent first; equals in order of name."""
        ranked = sorted(self.counts.items(), key=lambda pair: (-pair[1], pair[0]))
        return [{"reason": r, "count": n, "examples": list(self.examples[r])} for r, n in ranked]

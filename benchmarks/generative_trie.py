"""The catalog as a tree: every item is a sequence of words, and a generator may only walk where items are.

Nodes are numbered level by level, so that the children of a node follow each other. Knows no model.

# N items, M nodes, V words
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from model.errors import InvalidInputError

ROOT = 0


@dataclass(frozen=True)
class Trie:
    """Items lie at leaves; items with the same words share one."""

    parent: np.ndarray
    """int64 [M], rising; -1 for the root"""
    word: np.ndarray
    """int64 [M]: the word that leads to a node; -1 for the root"""
    paths: list[np.ndarray]
    """Of every item: the nodes below the root, down to its leaf."""

    @cached_property
    def first_child(self) -> np.ndarray:
        """int64 [M+1]: the children of node n are first_child[n] to first_child[n+1] - 1."""
        return np.searchsorted(self.parent, np.arange(len(self.parent) + 1))

    @cached_property
    def is_inner(self) -> np.ndarray:
        """bool [M]: whether a walk goes on from here."""
        return np.diff(self.first_child) > 0

    @cached_property
    def leaf_of_item(self) -> np.ndarray:
        """int64 [N]"""
        return np.array([path[-1] for path in self.paths])

    @cached_property
    def num_items(self) -> np.ndarray:
        """int64 [M]: items at or below every node."""
        return self.count(range(len(self.paths)))

    def count(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """int64 [M]: how many of some items lie at or below every node."""
        nodes = [self.paths[row] for row in np.unique(np.asarray(rows, np.int64))]
        return np.bincount(np.concatenate([*nodes, np.empty(0, np.int64)]), minlength=len(self.parent))

    def children(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(children of all `nodes`, for each the place of its parent in `nodes`)."""
        first, num = self.first_child[nodes], np.diff(self.first_child)[nodes]
        owner = np.repeat(np.arange(len(nodes)), num)
        return np.arange(num.sum()) - (np.cumsum(num) - num)[owner] + first[owner], owner


def build_trie(spellings: Sequence[np.ndarray]) -> Trie:
    """The tree of all items' words. Raises InvalidInputError where one item's words begin another's."""
    lengths = np.array([len(words) for words in spellings])
    node = np.full(len(spellings), ROOT)
    parents, word, walked = [np.array([-1])], [np.array([-1])], []
    num_nodes = 1
    for depth in range(lengths.max()):
        open_ = np.flatnonzero(lengths > depth)
        steps = np.column_stack([node[open_], [spellings[row][depth] for row in open_]])
        new, inverse = np.unique(steps, axis=0, return_inverse=True)
        parents.append(new[:, 0])
        word.append(new[:, 1])
        node[open_] = num_nodes + inverse.reshape(-1)
        num_nodes += len(new)
        walked.append(node.copy())
    paths = [np.array([level[row] for level in walked[: lengths[row]]]) for row in range(len(spellings))]
    trie = Trie(np.concatenate(parents), np.concatenate(word), paths)
    ends_early = np.flatnonzero(trie.is_inner[trie.leaf_of_item])
    if len(ends_early):
        raise InvalidInputError(
            f"the words of item row {ends_early[0]} are the beginning of another item's: end every item in a word of "
            "its own",
            "spellings",
        )
    return trie

"""Beam search over the trie of a catalog, for several people at once.

What a history's prompt leaves in the layers is computed once and shared by all its beams: the beams of a person are
tokens of ONE sequence after the prompt, and a mask lets each see the prompt and its own ancestors alone. So nothing is
copied or reordered between steps, whatever the number of beams.

# B people, T tokens of the prompts, K tokens seen so far, L live beams, V words, N items
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.generative_reader import Reader
from benchmarks.generative_trie import ROOT, Trie


class Beams:
    """The best partial and whole items of one person. Items of `seen` are never entered."""

    def __init__(self, trie: Trie, seen: np.ndarray, width: int) -> None:
        self._trie = trie
        self._seen = seen
        self._num_seen = trie.count(seen)
        self._width = width
        self.nodes = np.array([ROOT])
        self.scores = np.zeros(1)

    @property
    def live(self) -> np.ndarray:
        """Nodes whose items are not written to the end."""
        return self.nodes[self._trie.is_inner[self.nodes]]

    def grow(self, log_probability_LV: np.ndarray) -> np.ndarray:
        """Write one more word; for each beam that is now live, the place of its parent among those that were.

        Whole items compete with partial ones, whose scores can only fall: what is kept in the end is the best of all
        that the width let through.
        """
        inner = self._trie.is_inner[self.nodes]
        children, owner = self._trie.children(self.nodes[inner])
        unseen = self._trie.num_items[children] > self._num_seen[children]
        children, owner = children[unseen], owner[unseen]
        grown = self.scores[inner][owner] + log_probability_LV[owner, self._trie.word[children]]
        nodes, scores = np.append(self.nodes[~inner], children), np.append(self.scores[~inner], grown)
        owner = np.append(np.full((~inner).sum(), -1), owner)
        best = np.argsort(-scores, kind="stable")[: self._width]
        self.nodes, self.scores = nodes[best], scores[best]
        return owner[best][self._trie.is_inner[self.nodes]]

    def item_scores(self) -> np.ndarray:
        """float32 [N]: log-likelihood of the items that were written, -inf of all others."""
        score_of_node = np.full(len(self._trie.parent), -np.inf, np.float32)
        score_of_node[self.nodes] = self.scores
        scores = score_of_node[self._trie.leaf_of_item]
        scores[self._seen] = -np.inf
        return scores


@torch.inference_mode()
def generate(
    reader: Reader, trie: Trie, shown: Sequence[np.ndarray], seen: Sequence[np.ndarray], width: int
) -> np.ndarray:
    """float32 [B, N]: scores of the items that `width` beams find after the histories `shown`, -inf elsewhere."""
    people = [Beams(trie, rows, width) for rows in seen]
    reading = reader.read(shown)
    log_probability, visible_BLK = reading.log_probability_BLV, reading.visible_BLK
    while True:
        parents = [beams.grow(p_LV) for beams, p_LV in zip(people, log_probability, strict=True)]
        if not (L := max(len(places) for places in parents)):
            return np.stack([beams.item_scores() for beams in people])
        parent_BL = _padded(parents, L)
        word_BL = _padded([trie.word[beams.live] for beams in people], L)
        own_BLL = np.broadcast_to(np.eye(L, dtype=bool), (len(people), L, L))
        ancestors_BLK = np.take_along_axis(visible_BLK, parent_BL[:, :, None], axis=1)
        visible_BLK = np.concatenate([ancestors_BLK, own_BLL], axis=2)
        log_probability = reader.go_on(reading.cache, word_BL, visible_BLK)


def _padded(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
    return np.stack([np.pad(row, (0, length - len(row))) for row in rows])

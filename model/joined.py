"""A score's parts, joined: one inner product of concatenated vectors ranks by the weighted sum of them all.

language_model   h([REC]) and the features, through the projectors (paper, Eq. 4 to 8)
pooled           mean features of the newest items, through projectors of their own
sasrec           SASRec's state and its item embeddings, which are the CF feature

Each part is trained by itself; the weights come from validation (offline/fusion.py). Within a vector the blocks stand
by signal, so that a score still has three addends.

# B histories, n items at hand, N items, P shared width, W SASRec's width, Q width of a joined vector
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.config import SIGNALS, Part, Signal
from model.heads import NOTHING, Heads, ItemFeatures, Projectors, gather
from model.pooled import PooledStates, pad_histories
from model.sasrec import SASRec

Blocks = dict[tuple[Part, Signal], np.ndarray]
"""A part's share of vectors, float32 [B or n, its width], by part and signal."""
Weights = Mapping[Part, Mapping[Signal, float]]
"""What a part's inner product of a signal is multiplied by."""

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Joined:
    """The parts of one checkpoint, in evaluation mode on one device."""

    heads: Heads
    pooled: Projectors | None
    sasrec: SASRec | None
    weights: Weights
    """Its parts are those that take part."""

    @property
    def _counts_cf(self) -> np.float32:
        """0 where CF takes no part in retrieval (`heads.signals`)."""
        return np.float32("cf" in self.heads.config.signals)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of every signal's share of a joined vector, in the order of SIGNALS."""
        own = {
            "language_model": self.heads.shared_width,
            "pooled": self.pooled.shared_width if self.pooled else 0,
            "sasrec": self.sasrec.config.width if self.sasrec else 0,
        }
        return tuple(sum(own[part] for part in self.weights if signal in self.weights[part]) for signal in SIGNALS)

    def to(self, device: torch.device) -> None:
        """Move every part."""
        for module in (self.heads, self.pooled, self.sasrec):
            if module is not None:
                module.to(device)

    def item_vectors(self, features: ItemFeatures) -> np.ndarray:
        """float32 [N, Q]: what the index holds."""
        vectors = np.empty((len(features), sum(self.widths)), np.float32)
        for start in range(0, len(features), ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, len(features)))
            vectors[rows] = join(self._item_blocks(features, rows), self.weights)
        return vectors

    def user_vectors(
        self, language_model_B3P: np.ndarray, histories: Sequence[np.ndarray], features: ItemFeatures
    ) -> np.ndarray:
        """float32 [B, Q]. `language_model_B3P` is that part's share; `histories` are rows of `features`, uncut."""
        return join(self.user_blocks(language_model_B3P, histories, features), None)

    def item_blocks(self, features: ItemFeatures, rows: np.ndarray) -> Blocks:
        """Shares of some items' vectors, unweighted."""
        starts = range(0, len(rows), ROWS_AT_ONCE)
        found = [self._item_blocks(features, rows[start : start + ROWS_AT_ONCE]) for start in starts]
        return {key: np.concatenate([blocks[key] for blocks in found]) for key in found[0]}

    @torch.inference_mode()
    def _item_blocks(self, features: ItemFeatures, rows: np.ndarray) -> Blocks:
        vectors, missing = gather(features, rows, self.heads.device)
        blocks: Blocks = {}
        if "language_model" in self.weights:
            blocks |= by_signal("language_model", self.heads.project_items(vectors, missing).cpu().numpy())
        if self.pooled and "pooled" in self.weights:
            blocks |= by_signal("pooled", self.pooled.project_items(vectors, missing).cpu().numpy())
        if self.sasrec and "sasrec" in self.weights:
            blocks["sasrec", "cf"] = self.heads.cf_features(vectors, missing).cpu().numpy() * self._counts_cf
            if self.heads.config.missing_cf == "rescale":
                scale_n1 = np.where(missing["cf"].cpu().numpy(), self.heads.config.missing_sasrec_scale, 1.0)[:, None]
                return {key: (block * scale_n1).astype(np.float32) for key, block in blocks.items()}
        return blocks

    @torch.inference_mode()
    def user_blocks(
        self, language_model_B3P: np.ndarray, histories: Sequence[np.ndarray], features: ItemFeatures
    ) -> Blocks:
        """Shares of user vectors."""
        blocks: Blocks = {}
        if "language_model" in self.weights:
            blocks |= by_signal("language_model", language_model_B3P)
        if self.pooled and "pooled" in self.weights:
            states = PooledStates(features, pad_histories(histories))
            state_BD = states.take(np.arange(len(states))).to(self.pooled.device)
            blocks |= by_signal("pooled", self.pooled.project_users(state_BD).cpu().numpy())
        if self.sasrec and "sasrec" in self.weights:
            known = [rows[features.origin["cf"][rows] != NOTHING] for rows in histories]
            blocks["sasrec", "cf"] = self.sasrec.states(features.vectors["cf"], known)
        return blocks


def by_signal(part: Part, vector_n3P: np.ndarray) -> Blocks:
    """The blocks of a part that has all signals, side by side."""
    thirds = np.split(vector_n3P, len(SIGNALS), axis=1)
    return {(part, signal): third for signal, third in zip(SIGNALS, thirds, strict=True)}


def join(blocks: Blocks, weights: Weights | None) -> np.ndarray:
    """float32 [n, Q]: the blocks by signal, then by part; `weights` scale them (None: all one)."""
    ordered = sorted(blocks, key=lambda key: SIGNALS.index(key[1]))
    scaled = [blocks[part, s] if weights is None else weights[part][s] * blocks[part, s] for part, s in ordered]
    return np.concatenate(scaled, axis=1, dtype=np.float32)


def equal_weights(parts: Sequence[Part]) -> Weights:
    """Every part counts as it is."""
    return {part: dict.fromkeys(("cf",) if part == "sasrec" else SIGNALS, 1.0) for part in parts}

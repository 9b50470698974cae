"""The pooled part of a score: the projectors on plain averages of the features of the newest items.

By itself it is the control without a language model: a system that does not beat it has no reason to run one, so every
table carries it.

# K histories, L items of the longest history, W width of all features together
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.arrays import right_aligned
from model.config import SIGNALS, Config, Signal
from model.heads import NOTHING, ItemFeatures, Projectors, float_tensor

MAX_HISTORY = 10


def pad_histories(histories: Sequence[np.ndarray]) -> np.ndarray:
    """int32 [K, MAX_HISTORY]: the newest items right-aligned, -1 before them."""
    return right_aligned(histories, MAX_HISTORY, -1).astype(np.int32)


def pooled_width(widths: Mapping[Signal, int]) -> int:
    """Width of a pooled state over features of these widths."""
    return sum(widths.values()) + widths["cf"]


def pooled_projectors(config: Config, widths: Mapping[Signal, int]) -> Projectors:
    """Untrained projectors of the part: pooled features come in many sizes, so they are always standardised."""
    heads = config.heads.model_copy(update={"state_norm": "standardize"})
    return Projectors(heads, pooled_width(widths), widths)


@dataclass(frozen=True)
class PooledStates:
    """Per history: mean image, CF and text feature of its last ten items, and the CF feature of the last one."""

    features: ItemFeatures
    history_KL: np.ndarray
    """int32, from `pad_histories`"""

    def __len__(self) -> int:
        return len(self.history_KL)

    def take(self, index: np.ndarray) -> Tensor:
        """float32 [len(index), width]"""
        rows_KL = self.history_KL[index]
        rows_R, place = np.unique(rows_KL, return_inverse=True)  # -1, where a history is short, among them
        place_KL = torch.from_numpy(place.reshape(rows_KL.shape))
        vectors = {signal: float_tensor(self.features.vectors[signal][rows_R]) for signal in SIGNALS}
        known = {signal: self._known(signal, rows_R) for signal in SIGNALS}
        parts = [_mean(vectors[signal], known[signal], place_KL) for signal in SIGNALS]
        return torch.cat([*parts, _mean(vectors["cf"], known["cf"], place_KL[:, -1:])], dim=1)

    def _known(self, signal: Signal, rows_R: np.ndarray) -> Tensor:
        return torch.from_numpy((rows_R >= 0) & (self.features.origin[signal][rows_R] != NOTHING)).float()


def _mean(vector_RF: Tensor, known_R: Tensor, place_KL: Tensor) -> Tensor:
    """Mean [K, F] over the places whose vector is known; zeros where none is."""
    weight_KL = known_R[place_KL]
    weight_KL = weight_KL / weight_KL.sum(1, keepdim=True).clamp(min=1)
    return torch.nn.functional.embedding_bag(place_KL, vector_RF, mode="sum", per_sample_weights=weight_KL)

"""RERI losses: how far the summed inner products are from ranking the next item first (paper, Eq. 5).

# K states, n candidate items, P shared width
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import SIGNALS, HeadsConfig, Signal, TrainConfig
from model.heads import ItemFeatures, Projectors, gather
from offline.dataset import Dataset


class RERI:
    """The retrieval loss over one dataset's items.

    Negatives are drawn from items with training events only: of an item that nobody could have chosen yet, nothing is
    known, and pushing it down would hurt it as soon as it is sold.
    """

    def __init__(
        self, dataset: Dataset, features: ItemFeatures, heads_config: HeadsConfig, config: TrainConfig
    ) -> None:
        self._seen = [np.sort(dataset.train_events(user)) for user in range(len(dataset.users))]
        self._pool = np.flatnonzero(dataset.num_train_events)
        self._features = features
        self._signals = heads_config.signals
        self._shared_width = heads_config.shared_width
        self._config = config

    def loss(
        self,
        heads: Projectors,
        state_KD: Tensor,
        users: np.ndarray,
        targets: np.ndarray,
        generator: np.random.Generator,
    ) -> dict[Signal, Tensor]:
        """Losses by signal, each a mean over the K states; their sum is RERI. `softmax_sum` reports under `image`."""
        rows, place = self._candidates(users, targets, generator)
        vectors, missing = gather(self._features, rows, state_KD.device)
        item_nQ = heads.project_items(vectors, missing)
        user_KQ = heads.project_users(state_KD)
        if self._config.loss == "softmax_sum":
            return {self._signals[0]: F.cross_entropy(user_KQ @ item_nQ.T, place.to(state_KD.device))}
        return {
            signal: self._signal_loss(*self._part(signal, user_KQ, item_nQ), place.to(state_KD.device))
            for signal in self._signals
        }

    def _candidates(
        self, users: np.ndarray, targets: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, Tensor]:
        """Candidate rows [n], and where among them the target (and, for `bce`, the negative) of every state is."""
        if self._config.loss == "bce":
            wanted = np.stack([targets, self._negatives(users, targets, generator)])
            rows, place = np.unique(wanted, return_inverse=True)
            return rows, torch.from_numpy(place.reshape(wanted.shape))
        pool = self._pool
        if len(pool) > self._config.max_softmax_items:
            pool = generator.choice(pool, self._config.max_softmax_items, replace=False)
        rows = np.union1d(pool, targets)
        return rows, torch.from_numpy(np.searchsorted(rows, targets))

    def _negatives(self, users: np.ndarray, targets: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """One random item a state that its user has not chosen in training."""
        negatives = generator.choice(self._pool, len(users))
        for at, (user, target) in enumerate(zip(users, targets, strict=True)):
            for _ in range(100):
                if negatives[at] != target and negatives[at] not in self._seen[user]:
                    break
                negatives[at] = generator.choice(self._pool)
        return negatives

    def _part(self, signal: Signal, user_KQ: Tensor, item_nQ: Tensor) -> tuple[Tensor, Tensor]:
        start = SIGNALS.index(signal) * self._shared_width
        part = slice(start, start + self._shared_width)
        return user_KQ[:, part], item_nQ[:, part]

    def _signal_loss(self, user_KP: Tensor, item_nP: Tensor, place: Tensor) -> Tensor:
        if self._config.loss == "softmax_per_signal":
            return F.cross_entropy(user_KP @ item_nP.T, place)
        positive_K, negative_K = ((user_KP * item_nP[rows]).sum(1) for rows in place)
        return -(F.logsigmoid(positive_K) + F.logsigmoid(-negative_K)).mean()

"""How much each part of a joined score counts (model/joined.py): weights of the highest likelihood on validation.

A softmax over the catalog of the weighted sum of the parts' scores is a conditional logit whose features are those
scores: its likelihood is concave in the weights, one weight a part and signal, none negative. Converged parts are not
trained any further, and the log-softmax of a part ranks as its score does, so no part needs rescaling first.

# U validation users, N candidate items, F parts and signals
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from model.config import Part, Signal
from model.heads import ItemFeatures, products
from model.joined import Blocks, Joined, Weights, equal_weights, join
from offline.dataset import Dataset
from offline.metrics import ndcg_at, rank_of_target

PENALTY = 1e-3
"""Of squared standardised weights, in nats an event: settles what the events leave open, too small to move the rest."""


@dataclass(frozen=True)
class Choices:
    """Validation events as the parts see them."""

    users: Blocks
    items: Blocks
    """Of all items, or of a sample of a large catalog."""
    targets: np.ndarray
    """int [U]: rows of the `items` blocks"""
    seen: list[np.ndarray]
    """Per user: rows of the `items` blocks that are never ranked."""

    def weights(self, parts: Sequence[Part]) -> Weights:
        """Of the highest likelihood; a part alone counts as it is."""
        if len(parts) == 1:
            return equal_weights(parts)
        return fit_weights(self.users, self.items, self.targets, self.seen, parts)

    def ndcg(self, weights: Weights) -> float:
        """NDCG@10 of these events among these items."""
        users, items = join(of_weights(self.users, weights), None), join(of_weights(self.items, weights), weights)
        return ndcg_at(rank_of_target(products(users, items), self.targets, self.seen), 10)


def validation_choices(
    joined: Joined,
    language_model_U3P: np.ndarray,
    users: np.ndarray,
    dataset: Dataset,
    features: ItemFeatures,
    most: int,
) -> Choices:
    """What the parts of `joined` make of some users' validation events, among `most` items at most."""
    cases = dataset.validation_cases(users)
    rows = candidate_rows(dataset.num_items, cases.targets, most)
    return Choices(
        joined.user_blocks(language_model_U3P, cases.histories, features),
        joined.item_blocks(features, rows),
        np.searchsorted(rows, cases.targets),
        [places_among(rows, history) for history in cases.histories],
    )


def of_weights(blocks: Blocks, weights: Weights) -> Blocks:
    """The blocks that have a weight."""
    return {(part, signal): block for (part, signal), block in blocks.items() if signal in weights.get(part, {})}


def fit_weights(
    users: Blocks, items: Blocks, targets: np.ndarray, seen: Sequence[np.ndarray], parts: Sequence[Part]
) -> Weights:
    """Weights by part and signal. `targets` int [U] and `seen` (never ranked) are rows of the `items` blocks."""
    keys = [key for key in users if key[0] in parts]
    score_FUN = np.stack([products(users[key], items[key]) for key in keys])
    is_candidate_UN = np.ones(score_FUN.shape[1:], bool)
    for user, rows in enumerate(seen):
        is_candidate_UN[user, rows] = False
    is_candidate_UN[np.arange(len(targets)), targets] = True
    spread_F = score_FUN.std(axis=(1, 2))
    spread_F[spread_F == 0] = np.inf  # a signal that is switched off: weight 0
    score_FUN /= spread_F[:, None, None].astype(np.float32)
    weight_F = _most_likely(score_FUN, is_candidate_UN, targets) / spread_F
    weights: dict[Part, dict[Signal, float]] = {}
    for (part, signal), weight in zip(keys, weight_F.tolist(), strict=True):
        weights.setdefault(part, {})[signal] = weight
    return weights


def candidate_rows(num_items: int, targets: np.ndarray, most: int) -> np.ndarray:
    """Rows of the softmax, rising: all items, or of a large catalog a fixed sample with the targets."""
    if num_items <= most:
        return np.arange(num_items)
    sample = np.random.default_rng(11).choice(num_items, most, replace=False)
    return np.union1d(sample, targets)


def places_among(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where those of `wanted` that are in `rows` (rising) stand in it."""
    return np.flatnonzero(np.isin(rows, wanted))


def _most_likely(score_FUN: np.ndarray, is_candidate_UN: np.ndarray, target_U: np.ndarray) -> np.ndarray:
    """Weights float64 [F], none negative, that maximise the mean log-likelihood of the targets."""
    target_FU = score_FUN[:, np.arange(len(target_U)), target_U]

    def loss_and_gradient(weight_F: np.ndarray) -> tuple[float, np.ndarray]:
        logit_UN = np.tensordot(weight_F.astype(np.float32), score_FUN, axes=1)
        logit_UN[~is_candidate_UN] = -np.inf
        log_sum_U = logsumexp(logit_UN, axis=1)
        chance_UN = np.exp(logit_UN - log_sum_U[:, None])
        expected_FU = np.einsum("fun,un->fu", score_FUN, chance_UN)
        loss = float((log_sum_U - weight_F @ target_FU).mean() + PENALTY * (weight_F**2).sum())
        return loss, (expected_FU - target_FU).mean(1).astype(np.float64) + 2 * PENALTY * weight_F

    start_F = np.full(len(score_FUN), 1 / len(score_FUN))
    bounds = [(0.0, None)] * len(score_FUN)
    found: np.ndarray = minimize(loss_and_gradient, start_F, jac=True, method="L-BFGS-B", bounds=bounds).x
    return found

"""How a baseline is fitted: on training events, with settings and epochs that the validation event alone decides.

Knows no library: what one trains is a `Learner`, what is only counted is a score function.

# C cases, N items, V visual width
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from model.config import Config
from model.errors import ArtifactError
from model.store import Store
from offline.dataset import Cases, Dataset
from offline.metrics import ndcg_at, rank_of_target

Score = Callable[[Cases], np.ndarray]
"""float [C, N] for users and their histories; never looks at the targets."""


@dataclass(frozen=True)
class Fitted:
    """A baseline that is ready to be tested."""

    score: Score
    chosen: dict[str, Any]
    """What the validation event decided, such as epochs."""
    validation_ndcg: float


@dataclass(frozen=True)
class Task:
    """What every system is fitted on."""

    config: Config
    store: Store
    dataset: Dataset
    validation: Cases
    seed: int

    def image_features(self) -> np.ndarray:
        """float32 [N, V]: centred, each row of length 1 or, without a picture, zero. Raises ArtifactError."""
        folder = self.store.features(self.config.name, "image")
        if not (folder / "vectors.npy").is_file():
            raise ArtifactError(f"{folder} is missing: run `python -m offline.features --config {self.config.name}`")
        vectors_NV, has_N = np.load(folder / "vectors.npy").astype(np.float32), np.load(folder / "origin.npy") > 0
        centred_NV = (vectors_NV - vectors_NV[has_N].mean(0)) * has_N[:, None]
        return centred_NV / np.linalg.norm(centred_NV, axis=1, keepdims=True).clip(min=1e-6)


class Learner(Protocol):
    """A model that goes on learning where it stopped."""

    def advance(self, num_epochs: int) -> None: ...

    def score(self, cases: Cases) -> np.ndarray: ...

    def snapshot(self) -> Any:
        """What `restore` needs to bring the model back to this point."""

    def restore(self, snapshot: Any) -> None: ...


def fit_learner(learner: Learner, cases: Cases, *, validate_every: int, max_epochs: int, patience: int) -> Fitted:
    """Train until `patience` validations in a row bring nothing better, or `max_epochs`; the best state is kept."""
    best, best_epoch, best_state = -1.0, 0, None
    epoch = without_gain = 0
    while epoch < max_epochs and without_gain < patience:
        step = min(validate_every, max_epochs - epoch)
        learner.advance(step)
        epoch += step
        ndcg = _ndcg(learner.score, cases)
        without_gain += 1
        if ndcg > best:
            best, best_epoch, best_state, without_gain = ndcg, epoch, learner.snapshot(), 0
    learner.restore(best_state)
    return Fitted(learner.score, {"epochs": best_epoch}, best)


def best_of(candidates: Iterable[tuple[dict[str, Any], Score]], cases: Cases) -> Fitted:
    """The candidate with the best validation NDCG@10; the first of equals."""
    fitted = [Fitted(score, chosen, _ndcg(score, cases)) for chosen, score in candidates]
    return max(fitted, key=lambda one: one.validation_ndcg)


def _ndcg(score: Score, cases: Cases) -> float:
    return ndcg_at(rank_of_target(score(cases), cases.targets, cases.histories), 10)

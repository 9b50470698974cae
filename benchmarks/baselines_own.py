"""Baselines without a library: popularity, what followed what, and our SASRec.

# C cases, N items
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.baselines_fitting import Fitted, Score, Task, best_of
from offline.cf import train_sasrec
from offline.dataset import Cases, Dataset
from offline.metrics import popularity_scores

REACHES = (1, 3, 10, 30)
TIE = 1e-6
"""Weight of popularity beside counts that are 1 / REACHES[-1] ** 2 at the least."""


def popularity(dataset: Dataset) -> Score:
    """Training events of every item."""
    return lambda cases: np.broadcast_to(popularity_scores(dataset), (len(cases), dataset.num_items))


def fit_popularity(task: Task) -> Fitted:
    return best_of([({}, popularity(task.dataset))], task.validation)


def fit_cooccurrence(task: Task) -> Fitted:
    """Co-occurrence with the reach that validation prefers."""
    return best_of((({"reach": reach}, cooccurrence(task.dataset, reach)) for reach in REACHES), task.validation)


def fit_ours(task: Task) -> Fitted:
    """SASRec as `offline.cf` trains it."""
    fit = train_sasrec(task.dataset, task.config.cf, task.seed)
    return Fitted(lambda cases: fit.model.score(cases.histories), {"epochs": fit.best.epoch}, fit.best.ndcg)


def cooccurrence(dataset: Dataset, reach: int) -> Score:
    """How often an item came 1 to `reach` events after each of the last `reach` items, over the distance then and now.

    Popularity breaks ties. Holds a matrix of N x N counts.
    """
    follows_NN = np.zeros((dataset.num_items, dataset.num_items), np.float32)
    for user in range(len(dataset.users)):
        rows = dataset.train_events(user)
        for distance in range(1, min(reach, len(rows) - 1) + 1):
            np.add.at(follows_NN, (rows[:-distance], rows[distance:]), 1 / distance)
    popularity_N = popularity_scores(dataset)
    tie_N = TIE * popularity_N / popularity_N.max()

    def score(cases: Cases) -> np.ndarray:
        return np.stack([_recent(follows_NN, rows[-reach:]) for rows in cases.histories]) + tie_N

    return score


def _recent(follows_NN: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """float [N]: what followed the items of a history, the newest weighing 1, the one before 1/2, and so on."""
    weights = 1 / np.arange(len(rows), 0, -1, dtype=np.float32)
    return weights @ follows_NN[rows]

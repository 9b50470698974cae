"""Baselines that Cornac trains: GRU4Rec, and VBPR on our image features.

Item and user ids are the dataset's rows. Runs where `benchmarks/baselines-requirements.txt` is installed.

# C cases, N items, W width, V visual width
"""

from __future__ import annotations

import contextlib
import io
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from cornac.data import Dataset as UserItems
from cornac.data import ImageModality, SequentialDataset
from cornac.models import VBPR, GRU4Rec

from benchmarks.baselines_fitting import Fitted, Score, Task, best_of, fit_learner
from benchmarks.baselines_handover import event_columns
from model.config import CFConfig
from offline.dataset import Cases, Dataset

GRU_EPOCHS = (3, 6, 12)
GRU_NEGATIVES = 512
VBPR_LEARNING_RATE = 1e-3
VBPR_PATIENCE = 3
VBPR_VALIDATE_EVERY = 5


class VisualBPR:
    """VBPR that goes on from its own parameters; Adam starts anew each time."""

    def __init__(self, dataset: Dataset, image_NV: np.ndarray, width: int, seed: int) -> None:
        self._train = _user_items(dataset, seed)
        self._train.add_modalities(item_image=ImageModality(features=image_NV, ids=list(range(dataset.num_items))))
        self._train.item_image.build(id_map=self._train.iid_map)
        self._width, self._seed = width, seed
        self._model: VBPR | None = None

    def advance(self, num_epochs: int) -> None:
        half = self._width // 2
        with contextlib.redirect_stdout(io.StringIO()):  # it prints even when told not to
            self._model = VBPR(
                k=half, k2=half, n_epochs=num_epochs, learning_rate=VBPR_LEARNING_RATE, seed=self._seed, verbose=False,
                init_params=_parameters(self._model),
            ).fit(self._train)  # fmt: skip

    def score(self, cases: Cases) -> np.ndarray:
        """float [C, N]: a matter of the user, whatever the history."""
        model = self._model
        item_bias_N = model.beta_item + model.visual_bias
        taste_UN = model.gamma_user @ model.gamma_item.T + model.theta_user @ model.theta_item.T + item_bias_N
        return taste_UN[cases.users]

    def snapshot(self) -> Any:
        return self._model

    def restore(self, snapshot: Any) -> None:
        self._model = snapshot


def fit_vbpr(task: Task) -> Fitted:
    """VBPR with half of the width for taste and half for looks, as in its paper."""
    config = task.config.cf
    learner = VisualBPR(task.dataset, task.image_features(), config.width, task.seed)
    return fit_learner(
        learner,
        task.validation,
        validate_every=VBPR_VALIDATE_EVERY,
        max_epochs=config.max_epochs,
        patience=VBPR_PATIENCE,
    )


def fit_gru4rec(task: Task) -> Fitted:
    """GRU4Rec with cross-entropy over sampled items. It cannot go on learning, so each number of epochs is a run."""
    return best_of(_gru_runs(task.dataset, task.config.cf, task.seed), task.validation)


def _gru_runs(dataset: Dataset, config: CFConfig, seed: int) -> Iterator[tuple[dict[str, Any], Score]]:
    for num_epochs in GRU_EPOCHS:
        torch.manual_seed(seed)
        model = GRU4Rec(
            layers=[config.width], batch_size=config.batch_size, dropout_p_embed=config.dropout,
            dropout_p_hidden=config.dropout, n_sample=GRU_NEGATIVES, n_epochs=num_epochs, seed=seed,
        ).fit(_sessions(dataset, seed))  # fmt: skip
        yield {"epochs": num_epochs}, _gru_score(model)


def _gru_score(model: GRU4Rec) -> Score:
    network = model.model.eval()

    @torch.inference_mode()
    def score(cases: Cases) -> np.ndarray:
        """The library's own score, many histories at a time: longest first, so that those still running come first."""
        order = np.argsort([-len(rows) for rows in cases.histories], kind="stable")
        histories = [cases.histories[case] for case in order]
        lengths = np.array([len(rows) for rows in histories])
        state_CW = torch.zeros(len(histories), model.layers[0])
        for step in range(lengths.max()):
            num = int((lengths > step).sum())
            items_B = torch.tensor([int(rows[step]) for rows in histories[:num]])
            embedded_BW, out_NW, bias_N1 = network.embed(items_B, None)
            state_CW[:num] = network.hidden_step(embedded_BW, [state_CW[:num]])
        scores_CN = np.empty((len(histories), len(out_NW)), np.float32)
        scores_CN[order] = network.score_items(state_CW, out_NW, bias_N1).numpy()
        return scores_CN

    return score


def _parameters(model: VBPR | None) -> dict[str, np.ndarray] | None:
    if model is None:
        return None
    return {
        "Bi": model.beta_item, "Gu": model.gamma_user, "Gi": model.gamma_item,
        "Tu": model.theta_user, "E": model.emb_matrix, "Bp": model.beta_prime,
    }  # fmt: skip


def _training_events(dataset: Dataset) -> dict[str, np.ndarray]:
    return event_columns([dataset.train_events(user) for user in range(len(dataset.users))])


def _rows(num: int) -> OrderedDict[int, int]:
    return OrderedDict((row, row) for row in range(num))


def _user_items(dataset: Dataset, seed: int) -> UserItems:
    events = _training_events(dataset)
    triples = [(user, item, 1.0) for user, item in zip(events["user_id"], events["item_id"], strict=True)]
    users, items = _rows(len(dataset.users)), _rows(dataset.num_items)
    return UserItems.build(triples, fmt="UIR", global_uid_map=users, global_iid_map=items, seed=seed)


def _sessions(dataset: Dataset, seed: int) -> SequentialDataset:
    """A session a user, with all training events."""
    events = _training_events(dataset)
    columns = zip(events["user_id"], events["user_id"], events["item_id"], events["datetime"], strict=True)
    return SequentialDataset.build(list(columns), fmt="USIT", global_iid_map=_rows(dataset.num_items), seed=seed)

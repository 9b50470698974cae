"""Baselines that RecTools trains: SASRec, the same with LiGR layers (eSASRec), BERT4Rec, ItemKNN.

Item ids are the dataset's rows, user ids the numbers of sequences or cases. Runs where
`benchmarks/baselines-requirements.txt` is installed.

# C cases, N items, W width
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender
from rectools.dataset import Dataset as Interactions
from rectools.models import BERT4RecModel, SASRecModel
from rectools.models.nn.transformers.base import TransformerModelBase
from rectools.models.nn.transformers.ligr import LiGRLayers
from scipy import sparse

from benchmarks.baselines_fitting import Fitted, Score, Task, best_of, fit_learner
from benchmarks.baselines_handover import default_settings, event_columns, training_sequences, transformer_settings
from offline.dataset import Cases, Dataset

NEIGHBOURS = (20, 100, 500)
SAMPLED_NEGATIVES = 256
MASKED = 0.2
"""Share of masked events under BERT4Rec; its paper's choice for MovieLens."""
SCORED_AT_ONCE = 256
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Transformer:
    """A RecTools transformer that is trained some epochs at a time."""

    def __init__(self, model: TransformerModelBase, sequences: Sequence[np.ndarray], num_items: int) -> None:
        self._model = model
        self._train = _interactions(sequences)
        self._num_items = num_items

    def advance(self, num_epochs: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's advice on loggers and workers
            self._model.fit_partial(self._train, min_epochs=num_epochs, max_epochs=num_epochs)

    @torch.inference_mode()
    def score(self, cases: Cases) -> np.ndarray:
        """float32 [C, N]: -inf for items that were not trained on; a history without a known item scores them all 0."""
        preparator, torch_model = self._model.data_preparator, self._model.torch_model.eval()
        known = preparator.transform_dataset_u2i(_interactions(cases.histories), np.arange(len(cases)))
        item_vectors = torch_model.item_model.get_all_embeddings()
        states = [
            torch_model.encode_sessions(batch, item_vectors)[:, -1]
            for batch in preparator.get_dataloader_recommend(known, SCORED_AT_ONCE)
        ]
        scores_CN = np.full((len(cases), self._num_items), -np.inf, np.float32)
        columns = preparator.get_known_item_ids().astype(np.int64)
        scores_CN[:, columns] = 0.0
        known_vectors = item_vectors[preparator.get_known_items_sorted_internal_ids()]
        scored = np.ix_(known.user_id_map.external_ids.astype(np.int64), columns)
        scores_CN[scored] = (torch.cat(states) @ known_vectors.T).numpy()
        return scores_CN

    def snapshot(self) -> Any:
        return copy.deepcopy(self._model.torch_model.state_dict())

    def restore(self, snapshot: Any) -> None:
        self._model.torch_model.load_state_dict(snapshot)


def fit_sasrec_matched(task: Task) -> Fitted:
    """The library's SASRec under our settings and on our training pairs."""
    return _fit(SASRecModel, transformer_settings(task.config.cf), task)


def fit_sasrec(task: Task) -> Fitted:
    """The same with the library's choices where it has any: embeddings not scaled, padding attended to."""
    return _fit(SASRecModel, default_settings(task.config.cf), task)


def fit_esasrec(task: Task) -> Fitted:
    """eSASRec: SASRec's objective, LiGR layers, softmax over sampled negatives."""
    modern = transformer_settings(task.config.cf) | {
        "transformer_layers_type": LiGRLayers,
        "loss": "sampled_softmax",
        "n_negatives": SAMPLED_NEGATIVES,
    }
    return _fit(SASRecModel, modern, task)


def fit_ligr(task: Task) -> Fitted:
    """eSASRec's layers under our loss."""
    return _fit(SASRecModel, transformer_settings(task.config.cf) | {"transformer_layers_type": LiGRLayers}, task)


def fit_bert4rec(task: Task) -> Fitted:
    """Masked events predicted from both sides, softmax."""
    return _fit(BERT4RecModel, transformer_settings(task.config.cf) | {"mask_prob": MASKED}, task)


def fit_item_knn(task: Task) -> Fitted:
    """Neighbours by cosine or BM25 among training users, whichever and however many validation prefers."""
    return best_of(_neighbours(task.dataset), task.validation)


def _neighbours(dataset: Dataset) -> Iterator[tuple[dict[str, Any], Score]]:
    histories = dataset.validation_cases().histories
    user_item = _matrix(histories, dataset.num_items)
    for kind in (CosineRecommender, BM25Recommender):
        for num in NEIGHBOURS:
            model = kind(K=num, num_threads=1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on the format of a matrix that the library converts itself
                model.fit(user_item, show_progress=False)
            yield {"similarity": kind.__name__, "neighbours": num}, _neighbour_score(model.similarity)


def _neighbour_score(similarity_NN: sparse.csr_matrix) -> Score:
    return lambda cases: (_matrix(cases.histories, similarity_NN.shape[0]) @ similarity_NN).toarray()


def _matrix(histories: Sequence[np.ndarray], num_items: int) -> sparse.csr_matrix:
    """[C, N]: how often each item is in each history."""
    events = event_columns(histories)
    ones = np.ones(len(events["item_id"]))
    return sparse.csr_matrix((ones, (events["user_id"], events["item_id"])), (len(histories), num_items))


def _fit(kind: type[TransformerModelBase], settings: dict[str, Any], task: Task) -> Fitted:
    np.random.seed(task.seed)  # what the library draws from
    torch.manual_seed(task.seed)
    config = task.config.cf
    model = kind(**settings, verbose=0)
    learner = Transformer(model, training_sequences(task.dataset, config), task.dataset.num_items)
    return fit_learner(
        learner,
        task.validation,
        validate_every=config.validate_every,
        max_epochs=config.max_epochs,
        patience=config.patience,
    )


def _interactions(sequences: Sequence[np.ndarray]) -> Interactions:
    return Interactions.construct(pd.DataFrame(event_columns(sequences) | {"weight": 1.0}))

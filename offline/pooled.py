"""The pooled part: projectors on mean features, trained on every training event, kept for all who would train the same.

What the language model is shown does not enter, so the rows of a study share it.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from accelerate.utils import set_seed
from safetensors.torch import save_file

from model.artifacts import building, fingerprint, is_whole, write_json, write_manifest
from model.checkpoint import load_pooled
from model.config import Config
from model.heads import ItemFeatures, Projectors
from model.pooled import MAX_HISTORY, PooledStates, pad_histories, pooled_projectors
from model.store import Store
from offline.aligned import feature_inputs
from offline.dataset import Dataset
from offline.fit import Examples, fit_projectors
from offline.losses import RERI

VERSION = 1
"""Raise when the same inputs would give other weights."""
MAX_EPOCHS = 100
"""It stops by itself."""
IRRELEVANT = {
    "steps",
    "batch_size",
    "learning_rate",
    "warmup_steps",
    "weight_decay",
    "risa_weight",
    "reri_weight",
    "two_stage",
    "progressive",
    "tails",
    "max_answer_tokens",
    "validate_every",
    "save_every",
    "max_state_windows",
}
"""Fields of `train` that do not enter."""


def make_pooled(
    config: Config, store: Store, dataset: Dataset, features: ItemFeatures, device: torch.device
) -> tuple[list[dict[str, float]], Projectors]:
    """Train the part, or take what was trained of the same before; returns its records and its projectors."""
    inputs = {
        "dataset": dataset.training_hash,
        "ablate": config.ablate.model_dump(),
        "features": feature_inputs(config, store),
        "heads": config.heads.model_dump(mode="json", exclude={"parts", "state_norm", "adaptor_width"}),
        "train": config.train.model_dump(mode="json", exclude=IRRELEVANT),
        "seed": config.seed,
        "version": VERSION,
    }
    folder = store.pooled / fingerprint(inputs)[:16]
    if is_whole(folder, inputs):
        records: list[dict[str, float]] = json.loads((folder / "metrics.json").read_text())
        return records, load_pooled(folder, config, features.widths()).requires_grad_(True).to(device)
    set_seed(config.seed)
    projectors = pooled_projectors(config, features.widths()).to(device)
    records = _fit(projectors, config, dataset, features)
    with building(folder) as new:
        save_file(projectors.state_dict(), new / "pooled.safetensors")
        write_json(new / "metrics.json", records)
        write_manifest(new, {"kind": "pooled", "inputs": inputs})
    return records, projectors


def _fit(projectors: Projectors, config: Config, dataset: Dataset, features: ItemFeatures) -> list[dict[str, float]]:
    projectors.measure_features(features)
    users = sample_users(dataset, config.train.max_validation_users, config.seed)
    cases = dataset.validation_cases(users)
    return fit_projectors(
        projectors,
        features,
        _training_examples(dataset, features),
        Examples(PooledStates(features, pad_histories(cases.histories)), users, cases.targets),
        cases.histories,
        RERI(dataset, features, config.heads, config.train),
        config.train.model_copy(update={"head_epochs": max(config.train.head_epochs, MAX_EPOCHS)}),
        config.seed,
        "pooled",
    )


def _training_examples(dataset: Dataset, features: ItemFeatures) -> Examples:
    """Every training event but a user's first, after the newest items before it."""
    users, histories, targets = [], [], []
    for user in range(len(dataset.users)):
        events = dataset.train_events(user)
        for end in range(1, len(events)):
            users.append(user)
            histories.append(events[max(0, end - MAX_HISTORY) : end])
            targets.append(events[end])
    return Examples(PooledStates(features, pad_histories(histories)), np.array(users), np.array(targets))


def sample_users(dataset: Dataset, most: int, seed: int) -> np.ndarray:
    """A fixed sample of users for validation, sorted; none whose validation event is of a hidden item."""
    users = np.arange(len(dataset.users))
    if dataset.hidden is not None:
        users = users[~dataset.hidden[dataset.validation_cases().targets]]
    return np.sort(np.random.default_rng([seed, 3]).permutation(users)[:most])

"""A dataset's features of all three signals, as the jobs before training left them. Knows no encoder."""

from __future__ import annotations

from typing import Any

import numpy as np

from model.artifacts import read_manifest
from model.config import SIGNALS, Config, Signal
from model.errors import ArtifactError
from model.heads import ItemFeatures
from model.store import Store
from offline.ablation import without_images
from offline.dataset import Dataset, items_fingerprint


def feature_inputs(config: Config, store: Store) -> dict[Signal, Any]:
    """What the features of a configuration were made from, by signal."""
    return {s: read_manifest(store.features(config.name, s), verify=False)["inputs"] for s in SIGNALS}


def load_item_features(config: Config, store: Store, dataset: Dataset) -> tuple[ItemFeatures, dict[str, str]]:
    """Row-aligned features of a dataset, memory-mapped, and the fingerprints of what made them.

    Raises ArtifactError naming the folder when features are missing, damaged, or were made from other items or events.
    """
    items = items_fingerprint(dataset.folder)
    made_from = {"image": ("items", items), "text": ("items", items), "cf": ("dataset", dataset.training_hash)}
    vectors: dict[Signal, np.ndarray] = {}
    origin: dict[Signal, np.ndarray] = {}
    encoders: dict[str, str] = {}
    for signal in SIGNALS:
        folder = store.features(config.name, signal)
        manifest = read_manifest(folder)
        name, wanted = made_from[signal]
        if manifest["inputs"].get(name) != wanted:
            raise ArtifactError(
                f"{folder} was made from another dataset than {config.dataset!r} is now: "
                f"run `python -m offline.{'cf' if signal == 'cf' else 'features'}` again"
            )
        encoders[signal] = manifest["encoder"]
        vectors[signal] = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        origin[signal] = np.load(folder / "origin.npy", allow_pickle=False)
    features = ItemFeatures(vectors, origin)
    return without_images(features, dataset.item_ids, config.ablate.missing_images), encoders

"""A dataset's features of all three signals, as the jobs before training left them. Knows no encoder."""

from __future__ import annotations

import numpy as np

from model.artifacts import read_manifest
from model.config import SIGNALS, Config, Signal
from model.errors import ArtifactError
from model.heads import ItemFeatures
from model.store import Store


def load_item_features(config: Config, store: Store, num_items: int) -> tuple[ItemFeatures, dict[str, str]]:
    """Row-aligned features of a dataset, memory-mapped, and the fingerprints of what made them."""
    vectors: dict[Signal, np.ndarray] = {}
    origin: dict[Signal, np.ndarray] = {}
    encoders: dict[str, str] = {}
    for signal in SIGNALS:
        folder = store.features(config.name, signal)
        encoders[signal] = read_manifest(folder)["encoder"]
        vectors[signal] = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        origin[signal] = np.load(folder / "origin.npy", allow_pickle=False)
        if len(vectors[signal]) != num_items:
            raise ArtifactError(
                f"{folder}: {len(vectors[signal])} rows, but dataset {config.dataset!r} has {num_items} items: "
                f"run `python -m offline.{'cf' if signal == 'cf' else 'features'}` again"
            )
    return ItemFeatures(vectors, origin), encoders

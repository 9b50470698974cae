"""What a study takes away before anything is trained (configuration section `ablate`).

Items are drawn by the hash of their id: the same ones for every seed, and those of a smaller share among those of a
larger.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from model.config import Config
from model.heads import NOTHING, ItemFeatures
from model.store import Store
from offline.dataset import Dataset, load_dataset


def open_dataset(config: Config, store: Store) -> Dataset:
    """The dataset of a configuration, without the training events of its hidden items."""
    dataset = load_dataset(store.dataset(config.dataset))
    share = config.ablate.hidden_items
    return replace(dataset, hidden=drawn(dataset.item_ids, share, "hidden")) if share else dataset


def without_images(features: ItemFeatures, item_ids: list[str], share: float) -> ItemFeatures:
    """The features without the pictures of a share of the items, as if there had been none."""
    if not share:
        return features
    is_gone_N = drawn(item_ids, share, "pictures")
    vectors = np.where(is_gone_N[:, None], np.float32(0), features.vectors["image"])
    origin = np.where(is_gone_N, np.uint8(NOTHING), features.origin["image"])
    return ItemFeatures({**features.vectors, "image": vectors}, {**features.origin, "image": origin})


def drawn(item_ids: list[str], share: float, purpose: str) -> np.ndarray:
    """bool [N]: which items are among a share of them; another purpose draws others."""
    hashes = [hashlib.sha256(f"{purpose}\x1f{item_id}".encode()).digest()[:8] for item_id in item_ids]
    return np.array([int.from_bytes(digest, "big") < share * 2**64 for digest in hashes])

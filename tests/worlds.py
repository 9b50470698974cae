"""A whole tiny world, made by the real jobs: models, dataset, features, checkpoint, evaluation, published catalog.

The fixture `tiny_world` is one, shared by all tests that only read. It takes seconds, because everything in it is
small; nothing in it is a stand-in.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tiny_data import tiny_dataset
from tiny_models import tiny_clip, tiny_language_model, tiny_sentence_encoder, tiny_siglip

from model.catalog import Catalog, current_version
from model.checkpoint import Checkpoint, load_checkpoint
from model.config import Config, parse_config
from model.recommender import Recommender
from model.store import Store
from offline import pipeline
from offline.dataset import Dataset, load_dataset

NUM_ITEMS, NUM_NEW, NUM_WITHOUT_IMAGE = 24, 2, 2
VISION_MODELS = {"siglip": tiny_siglip, "clip": tiny_clip}


@dataclass(frozen=True)
class World:
    """A store in which every job has run, and the configuration that they ran with."""

    store: Store
    config: Config

    @cached_property
    def dataset(self) -> Dataset:
        return load_dataset(self.store.dataset(self.config.dataset))

    @cached_property
    def catalog(self) -> Catalog:
        """The version that is served."""
        version = current_version(self.store.catalogs)
        assert version is not None
        return Catalog.load(self.store.catalogs / version)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return load_checkpoint(self.store.checkpoints / self.catalog.checkpoint_id)

    @cached_property
    def recommender(self) -> Recommender:
        return Recommender.load(self.store, device="cpu")

    def copy(self, folder: Path) -> World:
        """The same world in a store of its own, for tests that change it. The models stay where they are."""
        return World(Store(Path(shutil.copytree(self.store.root, folder / "store"))), self.config)

    def with_settings(self, **changes: Any) -> World:
        """Run every job again in this store with other settings, as in `tiny_settings`."""
        tree = self.config.model_dump()
        config = parse_config(_changed(tree, changes), Config)
        pipeline.run(config, self.store)
        return World(self.store, config)


def build_world(folder: Path, models: Path, vision: str = "siglip", **changes: Any) -> World:
    """Run every job in a new store below `folder`, on what `build_models` built; `changes` as in `tiny_settings`."""
    store = Store(folder / "store")
    build_dataset(store.dataset("tiny"))
    config = tiny_settings(models, vision, **changes)
    pipeline.run(config, store)
    return World(store, config)


def build_dataset(folder: Path) -> Path:
    """Items i0000 to i0023: the first two have no picture, the last two occur in no history."""
    return tiny_dataset(folder, num_items=NUM_ITEMS, num_new=NUM_NEW, num_without_image=NUM_WITHOUT_IMAGE)


def build_models(folder: Path) -> Path:
    """A language model, a SigLIP, a CLIP and a sentence encoder below `folder`; returns it."""
    tiny_language_model(folder / "language")
    for name, build in VISION_MODELS.items():
        build(folder / name)
    tiny_sentence_encoder(folder / "text")
    return folder


def tiny_settings(models: Path, vision: str = "siglip", **changes: Any) -> Config:
    """A configuration of tiny sizes; `changes` are fields by section: `train={"loss": "bce"}`, or `seed=1`."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "dataset": "tiny",
        "language_model": {"source": str(models / "language"), "dtype": "float32"},
        "vision": {"source": str(models / vision), "dtype": "float32"},
        "text": {"source": str(models / "text"), "dtype": "float32"},
        "cf": {"width": 8, "num_blocks": 1, "max_epochs": 2, "batch_size": 64},
        "prompt": {"max_history": 4, "max_title_tokens": 6},
        "heads": {"shared_width": 8, "adaptor_width": 16, "state_norm": "standardize"},
        "train": {
            "loss": "softmax_per_signal",
            "tails": "all",
            "steps": 4,
            "batch_size": 8,
            "warmup_steps": 1,
            "validate_every": 2,
            "save_every": 2,
            "head_epochs": 20,
            "head_learning_rate": 0.01,
        },
        "evaluate": {"num_candidates": 10},
    }
    return parse_config(_changed(tree, changes), Config)


def _changed(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return tree | {name: {**tree[name], **new} if isinstance(new, dict) else new for name, new in changes.items()}

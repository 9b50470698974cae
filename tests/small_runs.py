"""Parts of a training run that fit into a test: a tiny language model, a tiny dataset, random features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_data import tiny_dataset
from tiny_models import tiny_language_model

from model.config import SIGNALS, Config, HeadsConfig, LanguageModelConfig, PromptConfig, TextConfig, VisionConfig
from model.encoder import UserEncoder
from model.heads import Heads, ItemFeatures
from model.language_model import load_language_model
from model.prompt import PromptBuilder, build_segments
from model.store import Store
from offline.dataset import Dataset, load_dataset
from offline.losses import RERI
from offline.onepass import OnePass
from offline.train import Run

WIDTHS = {"image": 24, "cf": 10, "text": 16}


def random_features(num_items: int, seed: int = 0, num_missing: int = 2) -> ItemFeatures:
    """Seeded features; the first `num_missing` items have none of image and CF."""
    generator = np.random.default_rng(seed)
    vectors = {s: generator.standard_normal((num_items, WIDTHS[s])).astype(np.float32) for s in SIGNALS}
    origin = {s: np.ones(num_items, np.uint8) for s in SIGNALS}
    for signal in ("image", "cf"):
        origin[signal][:num_missing] = 0
    return ItemFeatures(vectors, origin)


def small_config(language_model: Path | str, **train: Any) -> Config:
    """A configuration of tiny sizes; keyword arguments are fields of `train`."""
    return Config(
        name="small",
        dataset="small",
        language_model=LanguageModelConfig(source=str(language_model), dtype="float32"),
        vision=VisionConfig(source="unused"),
        text=TextConfig(source="unused"),
        prompt=PromptConfig(max_history=4, max_title_tokens=6),
        heads=HeadsConfig(shared_width=8, adaptor_width=16),
        train={"steps": 6, "batch_size": 4, "warmup_steps": 2, "tails": "all", "save_every": 1, **train},
    )


class SmallRun:
    """Everything a training step needs, built by the code that builds the big ones."""

    def __init__(self, folder: Path, config: Config | None = None, **train: Any) -> None:
        source = folder / "lm"
        if not source.exists():
            tiny_language_model(source)
            tiny_dataset(folder / "dataset", num_users=24, num_items=24)
        self.config = config or small_config(source, **train)
        self.store = Store(folder / "store")
        self.dataset: Dataset = load_dataset(folder / "dataset")
        self.features = random_features(self.dataset.num_items)
        self.language_model = load_language_model(self.config.language_model, folder, torch.device("cpu"))
        torch.manual_seed(0)
        self.heads = Heads(self.config.heads, self.language_model.width, WIDTHS, self.language_model.embedding_rms)
        tokenizer = self.language_model.tokenizer
        segments = build_segments(tokenizer, self.dataset.items, self.config.prompt)
        builder = PromptBuilder(tokenizer, self.config.prompt)
        self.encoder = UserEncoder(self.language_model, self.heads, builder, segments, self.features)
        self.reri = RERI(self.dataset, self.features, self.config.heads, self.config.train)
        self.one_pass = OnePass(self.encoder, self.dataset, self.reri, self.config)

    @property
    def run(self) -> Run:
        return Run(
            self.config,
            self.dataset,
            self.features,
            dict.fromkeys(SIGNALS, "random"),
            self.heads,
            self.encoder,
            self.store,
        )

"""The paper's preset, scaled down to tiny models: its own settings, through the entry points of any other run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from worlds import NUM_ITEMS, World, build_dataset

from model.checkpoint import load_checkpoint
from model.config import Config, load_config
from model.ranking import Query
from model.store import Store
from offline.cf import main as cf
from offline.features import write_features
from offline.reindex import PUBLISHED
from offline.reindex import main as reindex

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 3


@pytest.fixture(scope="module")
def overrides(tiny_models: Path) -> list[str]:
    """Tiny shapes in place of the paper's, and less of everything; all else is the preset's."""
    return [
        "dataset=tiny",
        f"language_model.source={tiny_models / 'language'}",
        "language_model.random_init=true",
        "language_model.dtype=float32",
        f"vision.source={tiny_models / 'siglip'}",
        f"text.source={tiny_models / 'text'}",
        "cf.max_epochs=1",
        f"train.steps={NUM_STEPS}",
        "train.batch_size=4",
    ]


@pytest.fixture(scope="module")
def world(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> World:
    """Features and CF, training as a process of its own, and a published catalog."""
    store = Store(tmp_path_factory.mktemp("paper") / "store")
    build_dataset(store.dataset("tiny"))
    config = load_config("paper", overrides)
    arguments = ["--config", "paper", "--store", str(store.root)]
    for override in overrides:
        arguments += ["--set", override]
    write_features(config, store)
    cf(arguments)
    trained = subprocess.run(
        [sys.executable, "-m", "offline.train", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert trained.returncode == 0, trained.stderr
    assert trained.stdout.splitlines()[-1].startswith("checkpoint paper-")
    assert reindex(["--config", "paper", "--store", str(store.root)]) == PUBLISHED
    return World(store, config)


def test_the_preset_says_what_the_paper_says() -> None:
    config = load_config("paper")
    assert config.language_model.source == "princeton-nlp/Sheared-LLaMA-2.7B"
    assert config.vision.source == "google/siglip-so400m-patch14-384"
    assert config.text.source == "sentence-transformers/all-mpnet-base-v2"
    assert (config.train.loss, config.train.tails, config.train.two_stage) == ("bce", "last", False)
    assert (config.train.risa_weight, config.train.reri_weight) == (1, 1)
    assert (config.train.learning_rate, config.train.batch_size) == (1e-3, 32)
    assert (config.heads.shared_width, config.cf.width, config.prompt.max_history) == (512, 50, 10)
    assert config.prompt.fields == ("title", "image")


def test_it_takes_training_steps_on_all_four_losses(world: World) -> None:
    steps = json.loads((world.checkpoint.folder / "metrics.json").read_text())["steps"]
    assert [record["step"] for record in steps] == list(range(1, NUM_STEPS + 1))
    parts = ("risa", "reri_image", "reri_cf", "reri_text")
    for record in steps:
        assert record["loss"] == pytest.approx(sum(record[part] for part in parts), rel=1e-5)
        assert math.isfinite(record["grad_norm"])
        assert record["grad_norm"] > 0


def test_the_checkpoint_keeps_the_configuration_that_made_it(world: World, overrides: list[str]) -> None:
    kept: Config = load_checkpoint(world.checkpoint.folder).config
    assert kept == load_config("paper", overrides)
    assert world.checkpoint.heads.shared_width == 512


def test_it_answers_a_request(world: World) -> None:
    history = tuple(world.dataset.item_ids[row] for row in world.dataset.events[0])
    (ranking,) = world.recommender.rank([Query(history, k=NUM_ITEMS)])
    assert len(ranking.items) == NUM_ITEMS - len(history)
    assert {item.source for item in ranking.items} == {"model"}
    assert (ranking.history_used, ranking.history_truncated) == (len(history), False)

"""The evaluation folder of the baselines: complete after every system, and never measured twice."""

from __future__ import annotations

from pathlib import Path

from tiny_data import tiny_dataset

from benchmarks.baselines import measure
from model.config import Config, load_config
from model.store import Store
from offline.rankings import read_rows


def tiny_store(folder: Path) -> tuple[Config, Store]:
    tiny_dataset(folder / "datasets" / "tiny")
    overrides = ["evaluate.num_candidates=10", "cf.max_epochs=2", "cf.width=8"]
    return load_config("movielens", overrides).model_copy(update={"dataset": "tiny"}), Store(folder)


def test_a_system_that_was_measured_is_read_again(tmp_path: Path) -> None:
    config, store = tiny_store(tmp_path)
    first = measure(config, store, ["cooccurrence"], [0], "tiny")
    both = measure(config, store, ["ours", "cooccurrence"], [0], "tiny")
    assert both[1] == first[0]
    systems = {row["system"] for row in read_rows(store.evaluations / "baselines-tiny-seed0")}
    assert systems == {"ours", "cooccurrence"}


def test_other_settings_are_measured_anew(tmp_path: Path) -> None:
    config, store = tiny_store(tmp_path)
    measure(config, store, ["ours"], [0], "tiny")
    longer = config.model_copy(update={"cf": config.cf.model_copy(update={"max_epochs": 6})})
    (row,) = measure(longer, store, ["ours"], [0], "tiny")
    assert row["chosen"]["epochs"] > 2


def test_another_number_of_candidates_is_measured_anew(tmp_path: Path) -> None:
    config, store = tiny_store(tmp_path)
    (ten,) = measure(config, store, ["popularity"], [0], "tiny")
    harder = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"num_candidates": 14})})
    (fourteen,) = measure(harder, store, ["popularity"], [0], "tiny")
    assert fourteen["sampled"]["ndcg@10"] < ten["sampled"]["ndcg@10"]


def test_what_followed_is_found_where_the_next_item_follows_from_the_last(tmp_path: Path) -> None:
    config, store = tiny_store(tmp_path)
    popular, followed = measure(config, store, ["popularity", "cooccurrence"], [0], "tiny")
    assert followed["full"]["ndcg@10"] > 1.3 * popular["full"]["ndcg@10"]

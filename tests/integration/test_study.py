"""Studies and the question of worth, run whole on a tiny world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from worlds import World

from model.errors import InvalidInputError
from offline import study as studies
from offline.ablation import drawn, open_dataset, without_images
from offline.aligned import load_item_features
from offline.metrics import gains
from offline.pooled import make_pooled
from offline.studies import STUDIES, Row
from offline.study import configuration, report, run_row
from offline.worth import open_run, ranks, second, seeded, shuffled, worth
from offline.worth_report import ALONE, OURS, WITHOUT


def overrides_of(world: World) -> list[str]:
    """The tiny configuration as overrides of a preset."""
    tree: dict[str, Any] = world.config.model_dump(mode="json", exclude_none=True)
    flat = [(name, value) for name, value in tree.items() if not isinstance(value, dict)]
    flat += [
        (f"{name}.{key}", value) for name, own in tree.items() if isinstance(own, dict) for key, value in own.items()
    ]
    return [f"{name}={json.dumps(value)}" for name, value in flat] + ["language_model.num_layers=null"]


@pytest.mark.parametrize("row", [row for study in STUDIES.values() for row in study.rows], ids=lambda row: row.label)
def test_every_row_of_every_study_is_a_valid_configuration(row: Row) -> None:
    for base in ("demo", "movielens"):
        config = configuration(row, base, ["train.head_epochs=3"], seed=2)
        assert config.seed == 2
        assert config.name.endswith("-s2")


def test_the_rows_of_a_study_have_names_of_their_own() -> None:
    for study in STUDIES.values():
        names = [configuration(row, "demo", [], seed).name for row in study.rows for seed in range(3)]
        assert len(set(names)) == len(names)


def test_a_study_trains_its_rows_and_tells_them_apart(tiny_world: World, tmp_path: Path) -> None:
    world = tiny_world.copy(tmp_path)
    base = overrides_of(world)
    rows = [Row("as it is"), Row("zero", ('heads.missing_cf="zero"',), "the paper's number")]
    results = [run_row(row, "demo", base, world.store, 1) for row in rows]
    text = report("new-items", "demo", results)
    for result in results:
        assert result.joined.shape == (1, len(world.dataset.test_cases()))
        assert f"| {result.row.label} | {result.alone.mean():.4f} |" in text
    assert "the paper's number" in text
    assert not np.array_equal(results[0].joined, results[1].joined)
    again = run_row(rows[0], "demo", base, world.store, 1)
    assert np.array_equal(again.joined, results[0].joined)
    assert again.seconds < results[0].seconds / 2  # nothing is made again


def test_hidden_items_are_new_to_training_and_told_apart_in_the_report(tiny_world: World, tmp_path: Path) -> None:
    world = tiny_world.copy(tmp_path)
    rows = [Row("all"), Row("half", ("ablate.hidden_items=0.5", 'heads.missing_cf="predicted"'))]
    results = [run_row(row, "demo", overrides_of(world), world.store, 1) for row in rows]
    whole, grown = (open_dataset(configuration(row, "demo", overrides_of(world), 0), world.store) for row in rows)
    assert grown.hidden is not None
    assert 0.2 < grown.hidden.mean() < 0.8
    assert not grown.num_train_events[grown.hidden].any()
    assert np.array_equal(grown.num_train_events[~grown.hidden], whole.num_train_events[~grown.hidden])
    assert np.array_equal(grown.test_cases().targets, whole.test_cases().targets)
    assert np.array_equal(results[1].is_new_C, grown.hidden[grown.test_cases().targets])
    assert f"Test events of items that some row hides ({results[1].is_new_C.sum()})" in report(
        "grown-catalog", "demo", results
    )


def test_pictures_that_are_taken_away_are_missing(tiny_world: World) -> None:
    features, _ = load_item_features(tiny_world.config, tiny_world.store, tiny_world.dataset)
    half = without_images(features, tiny_world.dataset.item_ids, 0.6)
    gone = drawn(tiny_world.dataset.item_ids, 0.6, "pictures")
    assert 0 < gone.sum() < len(gone)
    assert not half.origin["image"][gone].any()
    assert not half.vectors["image"][gone].any()
    assert np.array_equal(half.vectors["image"][~gone], features.vectors["image"][~gone])
    assert half.vectors["text"] is features.vectors["text"]


def test_a_larger_share_takes_away_what_a_smaller_one_does_and_more() -> None:
    ids = [f"item {number}" for number in range(2000)]
    assert drawn(ids, 0.3, "pictures").mean() == pytest.approx(0.3, abs=0.03)
    assert not (drawn(ids, 0.3, "pictures") & ~drawn(ids, 0.6, "pictures")).any()
    assert drawn(ids, 1.0, "pictures").all()


def test_a_study_of_no_seed_is_refused(tiny_world: World) -> None:
    with pytest.raises(InvalidInputError, match="--seeds is 0"):
        studies.study("context", "demo", [], tiny_world.store, 0)


def test_worth_measures_ours_as_evaluation_does_and_says_what_it_found(tiny_world: World, tmp_path: Path) -> None:
    world = tiny_world.copy(tmp_path)
    folder = worth(world.config, world.store, 2)
    found = json.loads((folder / "worth.json").read_text())
    rows = json.loads((world.store.evaluations / world.checkpoint.id / "metrics.json").read_text())["rows"]
    measured = {row["system"]: row["ndcg@10"] for row in rows if (row["protocol"], row["group"]) == ("full", "all")}
    assert found["by seed"][ALONE][0] == pytest.approx(measured[ALONE], abs=1e-6)
    for system in (OURS, WITHOUT):  # weights fitted anew on states that differ in their last bits
        assert found["by seed"][system][0] == pytest.approx(measured[system], abs=0.02)
    text = (folder / "report.md").read_text()
    assert any(verdict in text for verdict in ("No gain was measured", "not surely more", "It helps"))


def test_worth_fits_the_placebos_on_the_same_people_where_only_some_are_asked(
    tiny_world: World, tmp_path: Path
) -> None:
    store = tiny_world.copy(tmp_path).store
    few = tiny_world.config.model_copy(
        update={"train": tiny_world.config.train.model_copy(update={"max_validation_users": 20})}
    )
    one, other = (open_run(seeded(few, seed), store, validation_seed=0) for seed in (0, 1))
    assert len(one.choices.targets) == 20
    assert np.array_equal(one.choices.targets, other.choices.targets)


def test_a_pooled_part_is_kept_until_its_features_change_or_its_file_is_damaged(
    tiny_world: World, tmp_path: Path
) -> None:
    world = tiny_world.copy(tmp_path)
    (kept,) = world.store.pooled.iterdir()
    written = (kept / "pooled.safetensors").read_bytes()
    features, _ = load_item_features(world.config, world.store, world.dataset)
    (kept / "pooled.safetensors").write_bytes(written[:-1] + bytes([written[-1] ^ 1]))
    make_pooled(world.config, world.store, world.dataset, features, torch.device("cpu"))
    assert (kept / "pooled.safetensors").read_bytes() == written  # trained again, to the same weights
    path = world.store.features(world.config.name, "image") / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "inputs": {**manifest["inputs"], "code": "newer"}}))
    make_pooled(world.config, world.store, world.dataset, features, torch.device("cpu"))
    assert len(list(world.store.pooled.iterdir())) == 2


def test_worth_of_one_seed_is_refused(tiny_world: World) -> None:
    with pytest.raises(InvalidInputError, match="--seeds is 1"):
        worth(tiny_world.config, tiny_world.store, 1)


def test_placebos_change_the_language_model_s_branch_and_nothing_else(tiny_world: World, tmp_path: Path) -> None:
    store = tiny_world.copy(tmp_path).store
    one, other = (open_run(seeded(tiny_world.config, seed), store, 0) for seed in (0, 1))
    for placebo in (shuffled(one), second(one, other, "pooled")):
        for key, block in one.blocks.users.items():
            same = np.array_equal(placebo.blocks.users[key], block)
            assert same == (key[0] != "language_model")
    mixed = shuffled(one).blocks.users["language_model", "image"]
    assert sorted(map(tuple, mixed)) == sorted(map(tuple, one.blocks.users["language_model", "image"]))
    assert np.array_equal(
        second(one, other, "pooled").blocks.items["language_model", "text"], other.blocks.items["pooled", "text"]
    )
    assert gains(ranks(one, ("sasrec",)), 10).shape == (len(one.test.cases),)

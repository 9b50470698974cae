"""From a dataset to a recommendation by every job in turn; what is reused, what repeats, and what must not leak."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from worlds import NUM_ITEMS, NUM_NEW, NUM_WITHOUT_IMAGE, World, build_dataset, build_world, tiny_settings

from model.artifacts import read_manifest, write_manifest
from model.catalog import current_version
from model.checkpoint import latest_checkpoint
from model.errors import ArtifactError
from model.heads import ALIGNED_TEXT, NOTHING, OWN
from model.ranking import Query
from model.store import Store
from offline import pipeline
from offline.aligned import load_item_features
from offline.dataset import INTERACTION_SCHEMA, ITEM_SCHEMA, load_dataset
from offline.encoders import load_image_encoder
from offline.evaluate import evaluate
from offline.features import stand_in_text
from offline.publish import BusyError, alone
from offline.train import train, training_inputs

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = [
    "popularity",
    "SASRec",
    "control (no language model)",
    "ours without language model",
    "language model alone",
    "ours",
]
SIGNAL_ROWS = ["ours, image alone", "ours, cf alone", "ours, text alone"]


@pytest.fixture(params=["siglip", "clip"])
def world(request: pytest.FixtureRequest, tiny_world: World, tiny_models: Path, tmp_path: Path) -> World:
    """Every job has run with this vision model."""
    return tiny_world if request.param == "siglip" else build_world(tmp_path, tiny_models, request.param)


def metrics_of(world: World) -> list[dict[str, Any]]:
    path = world.store.evaluations / world.checkpoint.id / "metrics.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


def training_of(world: World) -> dict[str, Any]:
    records: dict[str, Any] = json.loads((world.checkpoint.folder / "metrics.json").read_text())
    return records


def weights_of(world: World) -> dict[str, np.ndarray]:
    """Everything that training learned, by name."""
    folder = world.checkpoint.folder
    found = {
        f"{name}/{key}": value
        for name in ("heads", "pooled")
        for key, value in load_file(folder / f"{name}.safetensors").items()
    }
    return {**found, "cf": np.asarray(world.checkpoint.cf_vectors)}


def times_written(store: Store) -> dict[str, int]:
    """Modification time and name of every artifact."""
    files = (path for path in store.root.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_every_job_runs_and_the_result_recommends(world: World) -> None:
    assert world.catalog.num_items == NUM_ITEMS
    assert read_manifest(world.catalog.folder)["checks"]["recall"] == {"recall@10": 1.0, "recall@100": 1.0}
    assert sorted({row["system"] for row in metrics_of(world)}) == sorted(SYSTEMS + SIGNAL_ROWS)
    history = tuple(world.dataset.item_ids[row] for row in world.dataset.events[0][:3])
    (ranking,) = world.recommender.rank([Query(history, k=NUM_ITEMS)])
    assert len(ranking.items) == NUM_ITEMS - 3
    assert np.ptp([item.score for item in ranking.items]) > 0


def test_items_without_a_picture_get_the_vector_of_the_text_tower(world: World) -> None:
    catalog = world.catalog
    expected_origin = [ALIGNED_TEXT] * NUM_WITHOUT_IMAGE + [OWN] * (NUM_ITEMS - NUM_WITHOUT_IMAGE)
    assert catalog.features.origin["image"].tolist() == expected_origin
    encoder = load_image_encoder(world.config.vision, world.store.models, "cpu")
    texts = [stand_in_text(row) for row in world.dataset.items.slice(0, NUM_WITHOUT_IMAGE).to_pylist()]
    np.testing.assert_allclose(
        catalog.features.vectors["image"][:NUM_WITHOUT_IMAGE], encoder.encode_texts(texts), atol=1e-5
    )
    assert np.linalg.norm(catalog.features.vectors["image"], axis=1).min() > 0


def test_items_that_nobody_chose_have_no_cf_and_are_recommended_all_the_same(world: World) -> None:
    assert world.catalog.features.origin["cf"].tolist() == [OWN] * (NUM_ITEMS - NUM_NEW) + [NOTHING] * NUM_NEW
    (ranking,) = world.recommender.rank([Query(("i0004",), k=NUM_ITEMS)])
    new = [item for item in ranking.items if item.item_id in ("i0022", "i0023")]
    assert len(new) == NUM_NEW
    for item in new:
        assert item.signals is not None
        assert item.signals.cf == 0
        assert item.signals.image != 0
        assert item.signals.text != 0


def test_running_the_pipeline_again_writes_nothing(tiny_world: World, tmp_path: Path) -> None:
    world = tiny_world.copy(tmp_path)
    before = times_written(world.store)
    assert len(before) > 30
    pipeline.run(world.config, world.store)
    assert times_written(world.store) == before


def test_a_changed_training_setting_trains_again_and_nothing_before_it(tiny_world: World, tmp_path: Path) -> None:
    world = tiny_world.copy(tmp_path)
    before = times_written(world.store)
    changed = world.with_settings(train={"learning_rate": 0.003})
    after = times_written(world.store)
    features = str(world.store.root / "features")
    assert {path for path in after if path.startswith(features) and after[path] != before.get(path)} == set()
    assert changed.checkpoint.id != tiny_world.checkpoint.id
    assert changed.catalog.version != tiny_world.catalog.version
    assert (world.store.checkpoints / tiny_world.checkpoint.id).is_dir()


def test_a_changed_cf_setting_makes_cf_and_all_after_it_again(tiny_world: World, tmp_path: Path) -> None:
    changed = tiny_world.copy(tmp_path).with_settings(cf={"width": 6})
    assert changed.checkpoint.cf_vectors.shape == (NUM_ITEMS, 6)
    assert changed.catalog.features.widths()["cf"] == 6
    assert changed.checkpoint.encoders["cf"] != tiny_world.checkpoint.encoders["cf"]
    assert changed.checkpoint.encoders["image"] == tiny_world.checkpoint.encoders["image"]


def test_an_older_checkpoint_is_not_measured_on_features_that_it_never_saw(tiny_world: World, tmp_path: Path) -> None:
    world = tiny_world.copy(tmp_path)
    shutil.rmtree(world.store.evaluations)
    world.with_settings(cf={"max_epochs": 4})
    with pytest.raises(ArtifactError, match=f"cf is not what checkpoint {tiny_world.checkpoint.id} was trained on"):
        evaluate(world.config, world.store, world.store.checkpoints / tiny_world.checkpoint.id)


def test_the_checkpoint_that_train_found_up_to_date_is_the_one_taken(tiny_world: World, tmp_path: Path) -> None:
    world = tiny_world.copy(tmp_path)
    changed = world.with_settings(train={"learning_rate": 0.003})
    assert latest_checkpoint(world.store, "tiny").name == changed.checkpoint.id
    train(world.config, world.store)
    assert latest_checkpoint(world.store, "tiny").name == tiny_world.checkpoint.id
    shutil.rmtree(world.store.checkpoints / tiny_world.checkpoint.id)
    shutil.copytree(changed.checkpoint.folder, world.store.checkpoints / f".{changed.checkpoint.id}.0a1b2c3d.old")
    assert latest_checkpoint(world.store, "tiny").name == changed.checkpoint.id


def test_features_of_another_dataset_are_refused_by_name(tiny_world: World, tmp_path: Path) -> None:
    world = tiny_world.copy(tmp_path)
    replace_events(world.dataset.folder, "test")
    dataset = load_dataset(world.dataset.folder)
    with pytest.raises(ArtifactError, match=r"features/tiny/cf was made from another dataset .* offline\.cf"):
        load_item_features(world.config, world.store, dataset)
    replace_titles(world.dataset.folder)
    dataset = load_dataset(world.dataset.folder)
    with pytest.raises(ArtifactError, match=r"features/tiny/image was made from another dataset .* offline\.features"):
        load_item_features(world.config, world.store, dataset)


def test_a_checkpoint_is_not_measured_on_another_dataset_than_its_own(tiny_world: World, tmp_path: Path) -> None:
    world = tiny_world.copy(tmp_path)
    replace_events(world.dataset.folder, "test")
    with pytest.raises(ArtifactError, match=f"is not the dataset that checkpoint {tiny_world.checkpoint.id}"):
        evaluate(world.config, world.store)


def test_other_weights_of_the_language_model_make_another_checkpoint(
    tiny_world: World, tiny_models: Path, tmp_path: Path
) -> None:
    models = Path(shutil.copytree(tiny_models, tmp_path / "models"))
    config = tiny_settings(models)
    before = training_inputs(config, tiny_world.store)
    weights = load_file(models / "language" / "model.safetensors")
    save_file({name: value + 0.001 for name, value in weights.items()}, models / "language" / "model.safetensors")
    assert training_inputs(config, tiny_world.store) != before


def test_training_in_several_processes_is_refused(tmp_path: Path) -> None:
    """A real launch of two processes; they end before they read anything."""
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "offline.train", "--store", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode != 0
    assert "error: training was launched in 2 processes" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_catalog_that_cannot_be_published_ends_the_pipeline(tiny_world: World, tmp_path: Path) -> None:
    world = tiny_world.copy(tmp_path)
    with alone(world.store.catalogs), pytest.raises(BusyError):
        world.with_settings(train={"learning_rate": 0.003})
    assert current_version(world.store.catalogs) == tiny_world.catalog.version


def test_the_same_seed_gives_the_same_weights_and_metrics_twice(
    tiny_world: World, tiny_models: Path, tmp_path: Path
) -> None:
    again = build_world(tmp_path, tiny_models)
    assert again.checkpoint.id == tiny_world.checkpoint.id
    assert metrics_of(again) == metrics_of(tiny_world)
    assert training_of(again) == training_of(tiny_world)
    assert_same_weights(again, tiny_world)
    np.testing.assert_array_equal(again.catalog.item_vectors, tiny_world.catalog.item_vectors)


def test_another_seed_gives_other_weights(tiny_world: World, tmp_path: Path) -> None:
    other = tiny_world.copy(tmp_path).with_settings(seed=1)
    ours, others = weights_of(tiny_world), weights_of(other)
    assert any(not np.array_equal(ours[name], others[name]) for name in ours if name.startswith("heads/user"))
    assert not np.array_equal(ours["cf"], others["cf"])


@pytest.mark.parametrize(
    "train",
    [{"loss": "bce", "tails": "last", "head_epochs": 0}, {"head_epochs": 20}],
    ids=["sampled negatives", "projectors on cached states"],
)
def test_test_events_reach_neither_training_nor_cf_nor_validation(
    tiny_models: Path, tmp_path: Path, train: dict[str, Any]
) -> None:
    worlds = []
    for name in ("real", "other"):
        store = Store(tmp_path / name)
        folder = build_dataset(store.dataset("tiny"))
        if name == "other":
            replace_events(folder, "test")
        config = tiny_settings(tiny_models, train=train)
        pipeline.run(config, store)
        worlds.append(World(store, config))
    real, other = worlds
    targets = [np.array([events[-1] for events in world.dataset.events]) for world in worlds]
    assert not np.any(targets[0] == targets[1])
    assert_same_weights(real, other)
    assert training_of(real) == training_of(other)
    assert real.checkpoint.canaries == other.checkpoint.canaries
    assert real.catalog.popularity.tolist() == other.catalog.popularity.tolist()
    assert metrics_of(real) != metrics_of(other)


def test_validation_events_reach_neither_weights_nor_cf_but_by_the_choice_among_them(
    tiny_models: Path, tmp_path: Path
) -> None:
    # One epoch and one validation each: nothing to choose from, so the weights must be the same.
    once: dict[str, Any] = {
        "train": {"validate_every": 4, "head_epochs": 0},
        "cf": {"max_epochs": 1, "validate_every": 1},
    }
    real = build_world(tmp_path / "real", tiny_models, **once)
    store = Store(tmp_path / "other")
    replace_events(build_dataset(store.dataset("tiny")), "validation")
    pipeline.run(real.config, store)
    other = World(store, real.config)
    heads = [{k: v for k, v in weights_of(world).items() if not k.startswith("pooled/")} for world in (real, other)]
    for name in heads[0]:
        np.testing.assert_array_equal(heads[0][name], heads[1][name], err_msg=name)
    assert training_of(real)["validation_ndcg@10"] != training_of(other)["validation_ndcg@10"]


def replace_events(folder: Path, split: str) -> None:
    """Give every event of one split another item, one that its user never met."""
    dataset = load_dataset(folder)
    events = pq.read_table(folder / "interactions.parquet").to_pylist()
    unmet = {
        user: np.setdiff1d(np.arange(NUM_ITEMS), rows) for user, rows in zip(dataset.users, dataset.events, strict=True)
    }
    for event in events:
        if event["split"] == split:
            event["item_id"] = dataset.item_ids[unmet[event["user_id"]][0]]
    facts = {key: value for key, value in read_manifest(folder).items() if key != "files"}
    pq.write_table(pa.Table.from_pylist(events, INTERACTION_SCHEMA), folder / "interactions.parquet")
    write_manifest(folder, facts)


def replace_titles(folder: Path) -> None:
    """Give the dataset's items other titles."""
    items = pq.read_table(folder / "items.parquet").to_pylist()
    facts = {key: value for key, value in read_manifest(folder).items() if key != "files"}
    renamed = [item | {"title": f"New {item['title']}"} for item in items]
    pq.write_table(pa.Table.from_pylist(renamed, ITEM_SCHEMA), folder / "items.parquet")
    write_manifest(folder, facts)


def assert_same_weights(one: World, other: World) -> None:
    ours, others = weights_of(one), weights_of(other)
    assert ours.keys() == others.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], others[name], err_msg=name)


RERI_PER_SIGNAL = {"reri_image", "reri_cf", "reri_text"}


@pytest.mark.parametrize(
    ("train", "losses", "trains_projectors"),
    [
        ({"two_stage": True, "head_epochs": 3}, {"risa"}, True),
        ({"loss": "bce", "tails": "last", "head_epochs": 0}, {"risa"} | RERI_PER_SIGNAL, False),
        ({"loss": "bce", "tails": "last", "head_epochs": 3}, {"risa"} | RERI_PER_SIGNAL, True),
        ({"loss": "softmax_sum", "head_epochs": 0}, {"risa", "reri_image"}, False),
        ({"loss": "softmax_sum", "head_epochs": 3, "risa_weight": 0.0}, {"reri_image"}, True),
        ({"steps": 0, "head_epochs": 3}, set(), True),
    ],
    ids=["two stages", "bce", "bce and projectors", "softmax of the sum", "without RISA", "projectors alone"],
)
def test_every_way_of_training_runs_through_to_a_recommendation(
    tiny_world: World, tmp_path: Path, train: dict[str, Any], losses: set[str], trains_projectors: bool
) -> None:
    world = tiny_world.copy(tmp_path).with_settings(train=train)
    records = training_of(world)
    for record in records["steps"]:
        assert losses | {"loss"} <= record.keys() <= losses | {"loss", "step", "grad_norm", "validation_ndcg@10"}
        assert np.isfinite(list(record.values())).all()
    assert len(records["steps"]) == world.config.train.steps
    assert bool(records["heads"]) == trains_projectors
    assert world.checkpoint.id != tiny_world.checkpoint.id
    assert "ours" in {row["system"] for row in metrics_of(world)}
    (ranking,) = world.recommender.rank([Query(("i0004", "i0008"), k=5)])
    assert ranking.checkpoint == world.checkpoint.id
    assert len(ranking.items) == 5

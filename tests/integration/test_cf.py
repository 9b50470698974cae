"""The job from a stored dataset to stored CF features, on the tiny dataset."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_data import tiny_dataset

from model.artifacts import read_manifest
from model.config import CFConfig, Config, load_config
from model.errors import ArtifactError, InvalidInputError
from model.sasrec import SASRec, load_sasrec
from model.store import Store
from offline.cf import Negatives, main, make_cf, train_sasrec, training_windows, validation_ndcg
from offline.dataset import Dataset, load_dataset
from offline.jobs import run_job
from offline.metrics import ndcg_at, popularity_scores, rank_of_target

NUM_NEW = 2
LEARNER = CFConfig(width=16, max_history=8, loss="softmax", learning_rate=1e-2, max_epochs=30)
TINY = ["dataset=tiny", "cf.width=16", "cf.max_epochs=10", "cf.validate_every=5"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"))
    tiny_dataset(store.dataset("tiny"), num_users=150, num_new=NUM_NEW)
    return store


@pytest.fixture(scope="module")
def dataset(store: Store) -> Dataset:
    return load_dataset(store.dataset("tiny"))


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("demo", TINY)


@pytest.fixture(scope="module")
def written(store: Store, config: Config) -> Path:
    return make_cf(config, store)


def untrained(dataset: Dataset, config: CFConfig = LEARNER) -> SASRec:
    model = SASRec(config, np.flatnonzero(dataset.num_train_events >= config.min_events), dataset.num_items)
    model.initialise(torch.Generator().manual_seed(0))
    return model


def with_other_targets(dataset: Dataset) -> Dataset:
    """The same training events, every validation and test event replaced."""
    events = [
        np.concatenate([rows[:-2], np.setdiff1d(np.arange(dataset.num_items, dtype=np.int32), rows)[:2]])
        for rows in dataset.events
    ]
    return dataclasses.replace(dataset, events=events)


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_it_learns_what_follows_what_far_beyond_popularity(dataset: Dataset, loss: str) -> None:
    fit = train_sasrec(dataset, LEARNER.model_copy(update={"loss": loss, "num_negatives": 4}), seed=0)
    histories, targets = [rows[:-1] for rows in dataset.events], np.array([rows[-1] for rows in dataset.events])
    popular = np.tile(popularity_scores(dataset), (len(histories), 1))
    ours = ndcg_at(rank_of_target(fit.model.score(histories), targets, histories), 10)
    # 9 of 10 steps are foreseeable; popularity knows none of them.
    assert ours > 1.5 * ndcg_at(rank_of_target(popular, targets, histories), 10)


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_the_loss_falls(dataset: Dataset, loss: str) -> None:
    fit = train_sasrec(dataset, LEARNER.model_copy(update={"loss": loss, "max_epochs": 15, "validate_every": 1}), 0)
    assert fit.validations[-1].loss < 0.8 * fit.validations[0].loss


def test_the_weights_kept_are_those_of_the_best_validation(dataset: Dataset) -> None:
    hasty = LEARNER.model_copy(update={"learning_rate": 0.05, "validate_every": 1, "patience": 3})
    fit = train_sasrec(dataset, hasty, seed=0)
    assert fit.best.ndcg == max(validation.ndcg for validation in fit.validations)
    assert fit.validations[-1].epoch == fit.best.epoch + 3
    assert validation_ndcg(fit.model, dataset) == fit.best.ndcg


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(dataset: Dataset) -> None:
    config = LEARNER.model_copy(update={"max_epochs": 3, "loss": "bce"})
    first, again, other = (train_sasrec(dataset, config, seed).model.item_vectors() for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_training_leaves_the_global_random_state_alone(dataset: Dataset) -> None:
    before = torch.get_rng_state()
    train_sasrec(dataset, LEARNER.model_copy(update={"max_epochs": 1}), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_and_test_events_do_not_reach_the_training_windows(dataset: Dataset) -> None:
    model, altered = untrained(dataset), with_other_targets(dataset)
    windows, windows_altered = training_windows(dataset, model), training_windows(altered, model)
    assert torch.equal(windows.input_SL, windows_altered.input_SL)
    assert torch.equal(windows.target_SL, windows_altered.target_SL)


def test_validation_and_test_events_do_not_change_the_trained_weights(dataset: Dataset) -> None:
    config = LEARNER.model_copy(update={"max_epochs": 2, "validate_every": 2, "loss": "bce"})
    fits = [train_sasrec(which, config, seed=0) for which in (dataset, with_other_targets(dataset))]
    assert np.array_equal(fits[0].model.item_vectors(), fits[1].model.item_vectors())
    assert fits[0].best.ndcg != fits[1].best.ndcg


def test_long_histories_are_cut_into_windows_that_hold_every_pair_once(dataset: Dataset) -> None:
    model = untrained(dataset, LEARNER.model_copy(update={"max_history": 2}))
    windows = training_windows(dataset, model)
    real = windows.target_SL != model.padding
    assert windows.input_SL.shape[1] == 2
    users = windows.user_S[:, None].expand_as(windows.target_SL)[real].tolist()
    pairs = zip(users, windows.input_SL[real].tolist(), windows.target_SL[real].tolist(), strict=True)
    expected = [
        (user, *pair)
        for user in range(len(dataset.users))
        for pair in zip(
            model.known_tokens(dataset.train_events(user))[:-1],
            model.known_tokens(dataset.train_events(user))[1:],
            strict=True,
        )
    ]
    assert sorted(pairs) == sorted(expected)


def test_negatives_are_every_unseen_item_and_nothing_else(dataset: Dataset) -> None:
    model = untrained(dataset)
    drawn = Negatives(dataset, model).sample(torch.arange(len(dataset.users)), 500, torch.Generator().manual_seed(0))
    for user, tokens in enumerate(drawn.tolist()):
        unseen = np.setdiff1d(np.arange(model.padding), model.known_tokens(dataset.train_events(user)))
        assert set(tokens) == set(unseen.tolist())


def test_a_user_who_has_met_everything_has_no_negative(dataset: Dataset) -> None:
    model = untrained(dataset)
    everything = np.concatenate([model.rows_K.numpy(), [0, 0]]).astype(np.int32)
    greedy = dataclasses.replace(dataset, events=[everything, *dataset.events[1:]])
    drawn = Negatives(greedy, model).sample(torch.tensor([0, 1]), 5, torch.Generator().manual_seed(0))
    assert (drawn[0] == model.padding).all()
    assert (drawn[1] != model.padding).all()


def test_a_dataset_without_pairs_is_refused_with_a_way_out(dataset: Dataset) -> None:
    with pytest.raises(InvalidInputError, match=r"lower cf\.min_events"):
        train_sasrec(dataset, LEARNER.model_copy(update={"min_events": 10_000}), seed=0)


def test_the_job_writes_row_aligned_features(written: Path, dataset: Dataset) -> None:
    vectors, origin = np.load(written / "vectors.npy"), np.load(written / "origin.npy")
    assert vectors.shape == (dataset.num_items, 16)
    assert (vectors.dtype, origin.dtype) == (np.float32, np.uint8)
    assert origin.tolist() == [1] * (dataset.num_items - NUM_NEW) + [0] * NUM_NEW
    assert np.array_equal(vectors.any(axis=1), origin.astype(bool))
    assert np.array_equal(load_sasrec(written).item_vectors(), vectors)


def test_the_manifest_says_what_was_made_of_what(written: Path, dataset: Dataset) -> None:
    manifest = read_manifest(written)
    assert (manifest["kind"], manifest["signal"], manifest["width"]) == ("features", "cf", 16)
    assert manifest["counts"] == {"items": dataset.num_items, "with_cf": 22, "too_young": NUM_NEW}
    assert manifest["inputs"]["dataset"] == dataset.manifest_hash
    metrics = json.loads((written / "metrics.json").read_text())
    assert manifest["validation"] in metrics
    assert [set(row) for row in metrics] == [{"epoch", "loss", "ndcg@10", "seconds"}] * 2


def test_a_second_run_does_nothing(
    written: Path, store: Store, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (written / "vectors.npy").stat().st_mtime_ns
    make_cf(config, store)
    assert "up to date" in capsys.readouterr().out
    assert (written / "vectors.npy").stat().st_mtime_ns == before


def test_the_command_line_overrides_a_field_and_trains_anew(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [part for text in [*TINY, "name=other", "cf.min_events=30"] for part in ("--set", text)]
    main(["--store", str(store.root), *overrides])
    manifest = read_manifest(store.features("other", "cf"))
    counts = load_dataset(store.dataset("tiny")).num_train_events
    assert manifest["counts"]["too_young"] == int((counts < 30).sum()) > NUM_NEW
    assert "items have a vector" in capsys.readouterr().out


def test_a_missing_dataset_ends_the_job_with_one_readable_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArtifactError, match="manifest"):
        main(["--store", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        run_job(lambda: main(["--store", str(tmp_path)]))
    assert capsys.readouterr().err.startswith("error: ")

"""Ranks, their averages, and the fixed candidates of the sampled protocol."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny_data import tiny_dataset

from model.errors import InvalidInputError
from offline.dataset import Dataset, load_dataset
from offline.metrics import hit_at, ndcg_at, popularity_scores, rank_of_target, sample_candidates, summarise

NOTHING = np.array([], np.int32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder: Path = tmp_path_factory.mktemp("data") / "tiny"
    return load_dataset(tiny_dataset(folder, num_users=20, num_new=2))


def rank(scores: list[float], target: int, excluded: list[int] | None = None) -> int:
    rows = np.array(excluded or [], np.int32)
    return int(rank_of_target(np.array([scores], np.float32), np.array([target]), [rows])[0])


def test_the_rank_counts_the_items_that_score_higher() -> None:
    assert rank([0.1, 0.9, 0.5, 0.7], target=2) == 3


def test_constant_scores_rank_the_target_last() -> None:
    assert rank([1.0] * 7, target=0) == 7


def test_items_of_the_history_are_not_counted() -> None:
    assert rank([0.1, 0.9, 0.5, 0.7], target=2, excluded=[1, 3]) == 1


def test_a_target_that_is_in_the_history_is_still_ranked() -> None:
    assert rank([0.1, 0.9, 0.5, 0.7], target=2, excluded=[1, 2]) == 2


def test_a_target_at_minus_infinity_ranks_last() -> None:
    assert rank([0.1, -np.inf, -np.inf, 0.7], target=1) == 4


def test_not_a_number_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="NaN"):
        rank([0.1, np.nan, 0.3], target=0)


def test_targets_of_another_length_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="do not fit"):
        rank_of_target(np.zeros((2, 3), np.float32), np.array([1]), [NOTHING, NOTHING])


def test_rows_and_a_mask_exclude_the_same() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 9)).astype(np.float32)
    target, rows = np.arange(5), [np.array([7, 8 - user]) for user in range(5)]
    mask = np.zeros((5, 9), bool)
    for user in range(5):
        mask[user, rows[user]] = True
    assert np.array_equal(rank_of_target(scores, target, rows), rank_of_target(scores, target, mask))


@given(arrays(np.float32, (3, 8), elements=st.sampled_from([-np.inf, -1.0, 0.0, 1.0, np.inf])))
def test_the_rank_is_the_place_in_a_sort_that_puts_the_target_after_its_equals(scores: np.ndarray) -> None:
    ranks = rank_of_target(scores, np.array([2, 2, 2]), [NOTHING] * 3)
    for row, actual in zip(scores, ranks, strict=True):
        order = sorted(range(8), key=lambda item: (-row[item], item == 2))
        assert order.index(2) + 1 == actual


def test_hits_and_ndcg_are_the_values_worked_out_by_hand() -> None:
    ranks = np.array([1, 3, 6, 11])
    assert hit_at(ranks, 5) == pytest.approx(2 / 4)
    assert hit_at(ranks, 10) == pytest.approx(3 / 4)
    assert ndcg_at(ranks, 5) == pytest.approx((1 + 1 / 2) / 4)
    assert summarise(ranks)["ndcg@10"] == pytest.approx((1 + 1 / 2 + 1 / np.log2(7)) / 4)


def test_a_summary_names_both_measures_at_both_depths() -> None:
    assert summarise(np.array([1])) == {"hit@5": 1.0, "hit@10": 1.0, "ndcg@5": 1.0, "ndcg@10": 1.0}


def test_an_average_over_nobody_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no users"):
        summarise(np.array([], np.int64))


def test_candidates_are_different_items_that_the_user_never_met(dataset: Dataset) -> None:
    candidates = sample_candidates(dataset, 10, seed=3)
    assert candidates.shape == (20, 10)
    assert candidates.dtype == np.int32
    for rows, events in zip(candidates, dataset.events, strict=True):
        assert len(set(rows.tolist())) == 10
        assert not set(rows.tolist()) & set(events.tolist())


def test_candidates_are_the_same_for_every_system(dataset: Dataset) -> None:
    assert np.array_equal(sample_candidates(dataset, 10, seed=3), sample_candidates(dataset, 10, seed=3))
    assert not np.array_equal(sample_candidates(dataset, 10, seed=3), sample_candidates(dataset, 10, seed=4))


def test_more_candidates_than_unseen_items_are_refused_by_user(dataset: Dataset) -> None:
    with pytest.raises(InvalidInputError, match=r"u0.*num_candidates"):
        sample_candidates(dataset, 20, seed=0)


def test_popularity_counts_training_events_only(dataset: Dataset) -> None:
    trained = np.concatenate([events[:-2] for events in dataset.events])
    assert popularity_scores(dataset).tolist() == np.bincount(trained, minlength=dataset.num_items).tolist()
    assert popularity_scores(dataset).dtype == np.float32

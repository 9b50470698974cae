"""What the libraries are given, what is counted without them, and how validation decides."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.baselines import MATCHED, SYSTEMS, Library, closeness, known_only, mean
from benchmarks.baselines_fitting import Cases, best_of, fit_learner
from benchmarks.baselines_handover import event_columns, training_sequences, transformer_settings
from benchmarks.baselines_own import cooccurrence
from model.config import CFConfig, load_config
from model.errors import InvalidInputError
from model.sasrec import SASRec
from offline.cf import training_windows
from offline.dataset import Dataset


def dataset_of(*histories: list[int], num_items: int = 6, num_test: int = 1) -> Dataset:
    events = [np.array(rows, np.int32) for rows in histories]
    items = pa.table({"item_id": [f"i{row}" for row in range(num_items)]})
    return Dataset(Path("nowhere"), items, [f"u{user}" for user in range(len(events))], events, "", num_test)


def test_a_long_history_becomes_pieces_that_share_one_event() -> None:
    dataset = dataset_of([0, 1, 2, 3, 4, 5, 0])
    pieces = training_sequences(dataset, CFConfig(max_history=2))
    assert [piece.tolist() for piece in pieces] == [[2, 3, 4], [0, 1, 2]]


def test_the_library_learns_from_the_pairs_that_our_sasrec_learns_from() -> None:
    generator = np.random.default_rng(0)
    dataset = dataset_of(
        *[generator.permutation(40)[: generator.integers(4, 40)].tolist() for _ in range(20)], num_items=40
    )
    config = CFConfig(max_history=7, min_events=3)
    known = np.flatnonzero(dataset.num_train_events >= config.min_events)
    windows = training_windows(dataset, SASRec(config, known, dataset.num_items))
    real = windows.target_SL != len(known)
    ours = zip(known[windows.input_SL[real]], known[windows.target_SL[real]], strict=True)
    theirs = [pair for piece in training_sequences(dataset, config) for pair in pairwise(piece)]
    assert sorted(ours) == sorted(theirs)


def test_no_piece_holds_a_validation_or_test_event() -> None:
    dataset = dataset_of([0, 1, 2, 3, 4, 5], num_test=2)
    assert max(piece.max() for piece in training_sequences(dataset, CFConfig())) == 2


def test_a_test_case_hands_over_its_whole_history_in_order() -> None:
    dataset = dataset_of([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1], num_test=2)
    columns = event_columns(dataset.test_cases().histories)
    handed = [columns["item_id"][columns["user_id"] == case].tolist() for case in range(4)]
    assert handed == [[0, 1, 2, 3], [0, 1, 2, 3, 4], [5, 4, 3], [5, 4, 3, 2]]
    assert columns["datetime"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3]


def test_the_library_gets_the_settings_of_our_sasrec() -> None:
    settings = transformer_settings(load_config("movielens", []).cf)
    assert settings == {
        "n_blocks": 2,
        "n_heads": 1,
        "n_factors": 64,
        "dropout_rate": 0.2,
        "session_max_len": 50,
        "loss": "softmax",
        "n_negatives": 1,
        "lr": 1e-3,
        "batch_size": 32,
        "pos_encoding_kwargs": {"use_scale_factor": True},
        "use_key_padding_mask": True,
    }


def test_weight_decay_is_refused_because_the_library_has_none() -> None:
    with pytest.raises(InvalidInputError, match=r"cf\.weight_decay is 0\.1"):
        transformer_settings(CFConfig(weight_decay=0.1))


def test_co_occurrence_counts_what_came_next() -> None:
    dataset = dataset_of([0, 1, 2, 5, 5], [0, 2, 5, 5])
    cases = Cases(np.array([0]), [np.array([4, 0])], np.array([1]))
    assert np.allclose(cooccurrence(dataset, reach=1)(cases), [[0, 1, 1, 0, 0, 0]], atol=2e-6)


def test_co_occurrence_divides_by_the_distance_then_and_now() -> None:
    dataset = dataset_of([0, 1, 2, 5, 5], [0, 2, 5, 5])
    cases = Cases(np.array([0]), [np.array([1, 0])], np.array([1]))
    # After 0: item 1 once next, item 2 once next and once two later. After 1, read one event ago: item 2 once next.
    assert np.allclose(cooccurrence(dataset, reach=2)(cases), [[0, 1, 1.5 + 0.5, 0, 0, 0]], atol=2e-6)


def test_popularity_breaks_the_ties_of_co_occurrence() -> None:
    dataset = dataset_of([0, 1, 5, 5], [2, 3, 5, 5], [3, 2, 5, 5], [3, 4, 5, 5])
    (scores,) = cooccurrence(dataset, reach=1)(Cases(np.array([0]), [np.array([0])], np.array([1])))
    assert scores.argsort()[::-1][:3].tolist() == [1, 3, 2]


class Counter:
    """Learns to like a target more and more until epoch 4, then unlearns."""

    def __init__(self, targets: np.ndarray) -> None:
        self.epoch, self._targets = 0, targets

    def advance(self, num_epochs: int) -> None:
        self.epoch += num_epochs

    def score(self, cases: Cases) -> np.ndarray:
        scores = np.tile(np.arange(6.0), (len(cases), 1))
        scores[np.arange(len(cases)), self._targets] = 4.5 - abs(self.epoch - 4)
        return scores

    def snapshot(self) -> int:
        return self.epoch

    def restore(self, snapshot: int) -> None:
        self.epoch = snapshot


def test_training_stops_when_validation_does_and_the_best_state_is_kept() -> None:
    validation = dataset_of([0, 1, 2, 3]).validation_cases()
    learner = Counter(validation.targets)
    fitted = fit_learner(learner, validation, validate_every=2, max_epochs=100, patience=2)
    assert fitted.chosen == {"epochs": 4}
    assert learner.epoch == 4
    assert fitted.validation_ndcg == pytest.approx(1 / np.log2(3))


def test_the_last_epoch_is_validated_too() -> None:
    validation = dataset_of([0, 1, 2, 3]).validation_cases()
    fitted = fit_learner(Counter(validation.targets), validation, validate_every=5, max_epochs=3, patience=1)
    assert fitted.chosen == {"epochs": 3}


def test_validation_chooses_among_settings() -> None:
    validation = dataset_of([0, 1, 2, 3]).validation_cases()
    scores = {"worse": np.arange(6.0)[None], "better": -np.abs(np.arange(6.0) - 2)[None]}
    fitted = best_of((({"kind": kind}, lambda _, kind=kind: scores[kind]) for kind in scores), validation)
    assert (fitted.chosen, fitted.validation_ndcg) == ({"kind": "better"}, 1.0)


def test_validation_asks_for_the_event_after_training() -> None:
    cases = dataset_of([0, 1, 2, 3, 4], num_test=2).validation_cases()
    assert (cases.histories[0].tolist(), cases.targets.tolist()) == ([0, 1], [2])


def test_an_item_without_training_events_is_never_ranked_by_chance() -> None:
    dataset = dataset_of([0, 1, 2, 3], num_items=4)
    assert known_only(np.zeros((1, 4)), dataset).tolist() == [[0, 0, -np.inf, -np.inf]]


def row(system: str, seed: int, ndcg: float) -> dict[str, Any]:
    metrics = {"hit@10": 0.5, "ndcg@10": ndcg}
    return {"system": system, "seed": seed, "full": metrics, "sampled": metrics, "train_cpu_seconds": 1.0 + seed}


def test_closeness_is_the_ratio_of_means_with_its_spread() -> None:
    rows = [row("ours", 0, 0.08), row(MATCHED, 0, 0.1), row("ours", 1, 0.1), row(MATCHED, 1, 0.1)]
    check = closeness(rows)
    assert check.value == pytest.approx(0.9)
    assert "2 seeds, 0.800 to 1.000" in check.name
    assert not check.holds


def test_the_table_shows_means_over_seeds() -> None:
    both = mean([row("ours", 0, 0.08), row("ours", 1, 0.1)])
    assert both["full"]["ndcg@10"] == pytest.approx(0.09)
    assert both["spread"] == pytest.approx(0.01)
    assert both["train_cpu_seconds"] == 1.5


def test_a_missing_library_names_the_requirements_file() -> None:
    with pytest.raises(InvalidInputError, match=r"not_there is not installed.*baselines-requirements\.txt"):
        Library("not_there", "not-there").function("fit")


def test_every_library_that_is_called_is_pinned() -> None:
    lines = Path("benchmarks/baselines-requirements.txt").read_text().splitlines()
    pins = [line.lower() for line in lines if not line.startswith("#")]
    assert all("==" in pin for pin in pins)
    for library, _ in SYSTEMS.values():
        assert any(pin.startswith(library.package) for pin in pins)

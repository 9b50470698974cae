"""benchmarks/generative.py on a whole tiny world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from worlds import World

from benchmarks.generative import LIST_LENGTH, NAMES, Rivals, load_retrieval, measured, sample_cases
from model.errors import ArtifactError
from model.store import Store


@pytest.fixture
def rivals(tiny_world: World) -> Rivals:
    return Rivals(tiny_world.config, tiny_world.store, tiny_world.dataset, num_beams=12, lora_rank=2)


def test_every_system_is_measured_on_the_same_cases(rivals: Rivals) -> None:
    rows = list(measured(rivals, NAMES, 10, quick=True))
    assert [row["system"] for row in rows] == ["popularity", *NAMES]
    assert {row["cases"] for row in rows} == {10}
    assert all(row["shortest_list"] >= LIST_LENGTH and row["one at a time"]["processor_s"] > 0 for row in rows)


def test_retrieval_is_scored_as_it_is_served(rivals: Rivals, tiny_world: World) -> None:
    histories = sample_cases(rivals.dataset, 5, seed=0).histories
    scores = load_retrieval(rivals.config, rivals.store, rivals.dataset).score(histories)
    for history, scores_N in zip(histories, scores, strict=True):
        assert np.isneginf(scores_N[history]).all()
    assert np.isfinite(scores).sum() > 0


def test_the_sample_of_cases_depends_on_the_seed_alone(rivals: Rivals) -> None:
    first, again, other = (sample_cases(rivals.dataset, 20, seed).users for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_without_a_checkpoint_the_error_says_what_to_run(rivals: Rivals, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"run `python -m offline\.train`"):
        load_retrieval(rivals.config, Store(tmp_path), rivals.dataset)

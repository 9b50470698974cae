"""The made-up store of the benchmarks: what is asked of it, and a server on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig
from worlds import World

from benchmarks.flops import state_flops
from benchmarks.load import Plan, run_load
from benchmarks.questions import NUM_STRATA, Questions, dataset_lengths, gift_card_lengths
from benchmarks.served import OURS, Served
from benchmarks.synthetic_store import build_store
from model.config import LanguageModelConfig
from model.store import Store


@pytest.fixture(scope="module")
def store(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    language_model = LanguageModelConfig(source=str(tiny_models / "language"), dtype="float32")
    return build_store(tmp_path_factory.mktemp("speed") / "store", language_model, ["title", "image"], 50)


@pytest.fixture(scope="module")
def questions(store: Store) -> Questions:
    return Questions(store)


def test_histories_differ_and_hold_no_item_twice(questions: Questions) -> None:
    histories = questions.histories(200, gift_card_lengths(), seed=0)
    assert len({tuple(history) for history in histories}) == 200
    assert all(len(set(history)) == len(history) for history in histories)


def test_every_stretch_of_histories_has_the_same_mixture_of_lengths(questions: Questions) -> None:
    lengths = [len(history) for history in questions.histories(3 * NUM_STRATA, gift_card_lengths(), seed=0)]
    stretches = [sorted(lengths[at : at + NUM_STRATA]) for at in range(0, len(lengths), NUM_STRATA)]
    assert stretches[0] == stretches[1] == stretches[2]
    assert abs(np.mean(lengths) - gift_card_lengths().mean()) < 0.3


def test_useful_flops_leave_out_the_static_prefix(questions: Questions, tiny_models: Path) -> None:
    shape = AutoConfig.from_pretrained(tiny_models / "language")
    history = np.array([3, 1, 4])
    assert questions.num_prefix_tokens > 1
    assert questions.useful_flops(shape, history) < state_flops(shape, len(questions.prompt(history)), 0)


def test_lengths_of_a_dataset_are_the_events_before_the_last(tiny_world: World) -> None:
    folder = tiny_world.store.dataset("tiny")
    lengths = dataset_lengths(folder, max_history=4)
    assert lengths.max() <= 4
    assert len(lengths) == len(tiny_world.dataset.users)


def test_a_server_answers_and_keeps_a_record_of_its_batches(store: Store, questions: Questions) -> None:
    bodies = [questions.body(history) for history in questions.histories(20, gift_card_lengths(), seed=0)]
    with Served(OURS, store.root, max_batch_tokens=2048, device="cpu") as server:
        top_items, seconds = server.ask(bodies[0])
        outcome = run_load(Plan(server.url, bodies, seconds=0.3, callers=4))
        batches = server.batches()
    assert len(top_items) == 10
    assert 0 < seconds < 30
    assert outcome.num_ok == len(outcome.status) == sum(batch.num_requests for batch in batches) - 1
    assert max(batch.num_requests for batch in batches) > 1

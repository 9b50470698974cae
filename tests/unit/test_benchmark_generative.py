"""The generative rivals are what they claim to be: exact where the search is wide, and confined to the catalog."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import SmallRun, random_features
from torch.nn import functional as F

from benchmarks.generative_beams import generate
from benchmarks.generative_reader import Reader, draw_windows, train_reader
from benchmarks.generative_trie import build_trie
from benchmarks.generative_words import SYSTEMS, make_words, semantic_ids
from model.config import TrainConfig
from model.errors import InvalidInputError
from model.language_model import load_language_model
from offline.dataset import Dataset

HISTORIES = [np.array([3, 7, 11]), np.array([5]), np.array([1, 2, 3, 4, 9, 8])]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return SmallRun(tmp_path_factory.mktemp("generative"))


def reader_of(small: SmallRun, system: str, lora_rank: int = 0) -> Reader:
    """A reader with random words for writing, so that nothing is uniform."""
    language_model = load_language_model(small.config.language_model, Path("unused"), torch.device("cpu"))
    torch.manual_seed(0)
    titles = small.dataset.items["title"].to_pylist()
    words = make_words(system, language_model, titles, 6, random_features(len(titles)), seed=0)
    reader = Reader(language_model, words, small.encoder.builder.prefix, max_history=4, lora_rank=lora_rank)
    if words.learned:
        with torch.no_grad():
            reader.output_VD.normal_(std=0.1)
            reader.bias_V.normal_()
    return reader


def log_likelihood(reader: Reader, history: np.ndarray, item: int) -> float:
    """Of one item's words after a history, in one forward pass without a cache."""
    prompt, words = reader.spell(history[-reader.max_history :]), reader.words.spellings[item]
    with torch.no_grad():
        embed_1TD = reader.prompts([np.concatenate([prompt, words])[:-1]])
        log_p_TV = F.log_softmax(reader.logits(reader._language_model.states(embed_1TD)[0, -len(words) :]), dim=-1)
    return float(log_p_TV[torch.arange(len(words)), torch.from_numpy(words)].sum())


@given(st.lists(st.lists(st.integers(0, 3), max_size=4), min_size=1, max_size=12))
def test_the_trie_admits_exactly_the_catalog(catalog: list[list[int]]) -> None:
    spellings = [np.array([*words, 9]) for words in catalog]
    trie = build_trie(spellings)
    walks, found = [(0, ())], set()
    while walks:
        node, words = walks.pop()
        children, _ = trie.children(np.array([node]))
        walks += [(int(child), (*words, int(trie.word[child]))) for child in children]
        if not len(children):
            found.add(words)
    assert found == {tuple(map(int, words)) for words in spellings}


def test_a_node_counts_the_items_below_it() -> None:
    trie = build_trie([np.array(words) for words in ([1, 2], [1, 3], [4, 2], [1, 2])])
    assert dict(zip(trie.word[1:3], trie.num_items[1:3], strict=True)) == {1: 3, 4: 1}


def test_an_item_whose_words_begin_another_s_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="item row 1"):
        build_trie([np.array([1, 2]), np.array([1])])


@pytest.mark.parametrize("system", SYSTEMS)
def test_as_many_beams_as_items_score_every_item_exactly(small: SmallRun, system: str) -> None:
    reader = reader_of(small, system)
    scores = generate(reader, build_trie(reader.words.spellings), HISTORIES, HISTORIES, width=24)
    for history, scores_N in zip(HISTORIES, scores, strict=True):
        unseen = np.setdiff1d(np.arange(24), history)
        expected = [log_likelihood(reader, history, item) for item in unseen]
        np.testing.assert_allclose(scores_N[unseen], expected, rtol=1e-4)


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_was_chosen_before_is_never_written(small: SmallRun, system: str) -> None:
    reader = reader_of(small, system)
    scores = generate(reader, build_trie(reader.words.spellings), HISTORIES, HISTORIES, width=24)
    for history, scores_N in zip(HISTORIES, scores, strict=True):
        assert np.isneginf(scores_N[history]).all()


@pytest.mark.parametrize("system", SYSTEMS)
def test_few_beams_list_at_least_as_many_items_with_exact_scores(small: SmallRun, system: str) -> None:
    reader = reader_of(small, system)
    trie = build_trie(reader.words.spellings)
    few, all_ = (generate(reader, trie, HISTORIES, HISTORIES, width) for width in (5, 24))
    listed = np.isfinite(few)
    assert (listed.sum(axis=1) >= 5).all()  # items that are written alike share a beam
    np.testing.assert_allclose(few[listed], all_[listed], rtol=1e-4)


def test_people_answered_together_get_what_each_gets_alone(small: SmallRun) -> None:
    reader = reader_of(small, "titles")
    trie = build_trie(reader.words.spellings)
    together = generate(reader, trie, HISTORIES, HISTORIES, width=6)
    alone = [generate(reader, trie, [history], [history], width=6)[0] for history in HISTORIES]
    np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_an_item_token_scores_its_state_times_its_embedding(small: SmallRun) -> None:
    reader = reader_of(small, "item-tokens")
    history = HISTORIES[0]
    (scores,) = generate(reader, build_trie(reader.words.spellings), [history], [history], width=24)
    with torch.no_grad():
        embed_TD = torch.cat([reader.prefix_PD, reader.input_VD[history]])
        state_D = reader._language_model.states(embed_TD[None])[0, -1]
        by_hand = torch.log_softmax(reader.output_VD @ state_D + reader.bias_V, dim=0).numpy()
    unseen = np.setdiff1d(np.arange(24), history)
    np.testing.assert_allclose(scores[unseen], by_hand[unseen], rtol=1e-4)


def test_semantic_ids_are_unique_even_for_equal_items() -> None:
    features = random_features(200)
    for vectors in features.vectors.values():
        vectors[50:80] = vectors[50]
    codes = np.array(semantic_ids(features, seed=0, num_codes=8))
    assert codes.shape == (200, 4)
    assert len(np.unique(codes, axis=0)) == 200


def test_a_code_belongs_to_one_level() -> None:
    codes = np.array(semantic_ids(random_features(200), seed=0, num_codes=8))
    levels = [set(column) for column in codes.T]
    assert all(max(above) < min(below) for above, below in pairwise(levels))


def test_similar_items_begin_with_the_same_code() -> None:
    features = random_features(40)
    for vectors in features.vectors.values():
        vectors[20:] = vectors[:20] + 1e-3
    codes = np.array(semantic_ids(features, seed=0, num_codes=8))
    assert (codes[20:, 0] == codes[:20, 0]).all()


@pytest.mark.parametrize("system", SYSTEMS)
def test_training_lowers_the_loss_and_repeats_itself(small: SmallRun, system: str) -> None:
    runs = []
    for _ in range(2):
        reader = reader_of(small, system)
        settings = TrainConfig(steps=30, batch_size=8, learning_rate=1e-2, warmup_steps=2)
        training = train_reader(reader, small.dataset, settings, seed=0)
        runs.append([parameter.detach().clone() for parameter in reader.learned()])
    assert training.last_loss < training.first_loss
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_loss_is_the_mean_over_the_words_of_all_items_but_the_first(small: SmallRun, system: str) -> None:
    reader = reader_of(small, system)
    windows = [np.array([3, 7, 11, 2]), np.array([5, 6])]
    words = reader.words.spellings
    total = sum(log_likelihood(reader, w[:at], int(w[at])) for w in windows for at in range(1, len(w)))
    num_words = sum(len(words[row]) for w in windows for row in w[1:])
    assert float(reader.loss(windows).detach()) == pytest.approx(-total / num_words, rel=1e-4)


def test_item_tokens_begin_with_popularity(small: SmallRun) -> None:
    reader = reader_of(small, "item-tokens")
    with torch.no_grad():
        reader.output_VD.zero_()
    popularity = np.arange(24)
    reader.count_words(popularity)
    (scores,) = generate(reader, build_trie(reader.words.spellings), [HISTORIES[0]], [HISTORIES[0]], width=24)
    unseen = np.setdiff1d(np.arange(24), HISTORIES[0])
    np.testing.assert_allclose(scores[unseen], np.log((1 + unseen) / (1 + popularity).sum()), rtol=1e-4)


def test_a_low_rank_change_starts_at_none_and_is_learned(small: SmallRun) -> None:
    plain, adapted = reader_of(small, "titles"), reader_of(small, "titles", lora_rank=2)
    windows = [np.array([3, 7, 11])]
    assert float(adapted.loss(windows).detach()) == pytest.approx(float(plain.loss(windows).detach()), rel=1e-5)
    adapted.loss(windows).backward()
    assert len(adapted.low_rank) == 2 * 7 * 2  # layers, maps, factors
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in adapted.low_rank)


def test_windows_hold_training_events_in_order(small: SmallRun) -> None:
    def is_stretch(window: np.ndarray, dataset: Dataset) -> bool:
        events = [dataset.train_events(user) for user in range(len(dataset.users))]
        return any(np.array_equal(window, rows[at : at + len(window)]) for rows in events for at in range(len(rows)))

    windows = draw_windows(small.dataset, 20, 3, np.random.default_rng(0))
    assert all(2 <= len(window) <= 3 and is_stretch(window, small.dataset) for window in windows)

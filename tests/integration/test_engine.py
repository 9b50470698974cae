"""The fast engine against its slow twin, over a world that the real jobs made: random histories, lengths and mixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds import World

from model.bounded_cache import CacheSizes
from model.encoder import UserEncoder
from model.engine import Engine
from model.index import build_index
from model.language_model import load_language_model
from model.prompt import PromptBuilder

CPU = torch.device("cpu")
NOTHING = CacheSizes(user_vector_bytes=0, prefix_bytes=0)
ONLY_PREFIXES = CacheSizes(user_vector_bytes=0, prefix_bytes=2**20)
HISTORIES = st.lists(st.lists(st.integers(0, 23), min_size=1, max_size=4), min_size=1, max_size=8)
PROPERTY = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def encoder_of(world: World, dtype: str = "float32") -> UserEncoder:
    """The slow twin, with a language model of its own."""
    config = world.config.language_model.model_copy(update={"dtype": dtype})
    language_model = load_language_model(config, world.store.models, CPU)
    builder = PromptBuilder(language_model.tokenizer, world.config.prompt)
    catalog = world.catalog
    return UserEncoder(language_model, world.checkpoint.heads, builder, catalog.segments, catalog.features)


def engine_of(world: World, caches: CacheSizes = NOTHING, dtype: str = "float32") -> Engine:
    encoder = encoder_of(world, dtype)
    return Engine(encoder, encoder.language_model.pack(), caches)


@pytest.fixture(scope="module")
def slow(tiny_world: World) -> UserEncoder:
    return encoder_of(tiny_world)


@pytest.fixture(scope="module")
def fast(tiny_world: World) -> Engine:
    return engine_of(tiny_world)


@pytest.fixture(scope="module")
def remembering(tiny_world: World) -> Engine:
    """Small enough a memory that things leave it while the examples run."""
    return engine_of(tiny_world, replace(ONLY_PREFIXES, prefix_bytes=100_000))


def rows(histories: Sequence[Sequence[int]]) -> list[np.ndarray]:
    return [np.array(history, np.int64) for history in histories]


def top(world: World, user_BQ: np.ndarray, k: int = 10) -> list[list[int]]:
    """By the language model's part alone, which is the engine's."""
    index = build_index(world.checkpoint.heads.item_vectors(world.catalog.features))
    return index.search(user_BQ, k)[1].tolist()


@PROPERTY
@given(histories=HISTORIES)
def test_packed_vectors_and_rankings_are_those_of_padded_prompts(
    tiny_world: World, fast: Engine, slow: UserEncoder, histories: list[list[int]]
) -> None:
    fast_BQ, slow_BQ = fast.encode(rows(histories)), slow.encode(rows(histories))
    np.testing.assert_allclose(fast_BQ, slow_BQ, atol=1e-4, rtol=0)
    assert top(tiny_world, fast_BQ) == top(tiny_world, slow_BQ)


@PROPERTY
@given(batches=st.lists(HISTORIES, min_size=1, max_size=4))
def test_histories_that_go_on_from_remembered_ones_give_the_same_vectors_as_recomputed(
    remembering: Engine, slow: UserEncoder, batches: list[list[list[int]]]
) -> None:
    for histories in batches:
        np.testing.assert_allclose(remembering.encode(rows(histories)), slow.encode(rows(histories)), atol=1e-4, rtol=0)


def test_a_remembered_beginning_is_not_computed_again(tiny_world: World) -> None:
    engine = engine_of(tiny_world, ONLY_PREFIXES)
    before, after = rows([[1, 2, 3], [1, 2, 3, 4]])
    whole = engine.num_tokens(after)
    engine.encode([before])
    lengths = tiny_world.catalog.segments.lengths(after)
    assert engine.num_tokens(after) == whole - lengths[:3].sum()


def test_prefixes_that_did_not_fit_are_computed_again(tiny_world: World, slow: UserEncoder) -> None:
    one_segment = engine_of(tiny_world, replace(ONLY_PREFIXES, prefix_bytes=9000))
    histories = rows([[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 9]])
    for history in histories * 2:
        np.testing.assert_allclose(one_segment.encode([history]), slow.encode([history]), atol=1e-4, rtol=0)


def test_the_same_history_again_costs_no_tokens_and_gives_the_very_same_vector(tiny_world: World) -> None:
    engine = engine_of(tiny_world, CacheSizes(user_vector_bytes=2**20, prefix_bytes=0))
    history = rows([[3, 1, 4]])[0]
    first = engine.encode([history])
    assert engine.num_tokens(history) == 0
    forward_s = engine.stages.seconds["forward"]
    np.testing.assert_array_equal(engine.encode([history]), first)
    assert engine.stages.seconds["forward"] == forward_s


def test_equal_histories_of_one_batch_are_computed_once(fast: Engine) -> None:
    histories = rows([[1, 2], [3], [1, 2]])
    vectors = fast.encode(histories)
    np.testing.assert_array_equal(vectors[0], vectors[2])


def test_more_tokens_than_one_forward_pass_takes_are_run_in_turns(tiny_world: World, slow: UserEncoder) -> None:
    engine = engine_of(tiny_world)
    histories = rows([[a, b, (a + b) % 24, 23 - a] for a in range(0, 24, 2) for b in range(0, 24, 2)])
    assert sum(map(engine.num_tokens, histories)) > 2 * 2048
    np.testing.assert_allclose(engine.encode(histories), slow.encode(histories), atol=1e-4, rtol=0)


def test_a_decoder_that_cannot_be_packed_runs_padded(tiny_world: World, slow: UserEncoder) -> None:
    padded = Engine(encoder_of(tiny_world), None, CacheSizes())
    histories = rows([[1, 2, 3], [4]])
    assert padded.num_tokens(histories[0]) > padded.num_tokens(histories[1]) > 0
    np.testing.assert_allclose(padded.encode(histories), slow.encode(histories), atol=1e-4, rtol=0)


def test_bfloat16_comes_at_least_as_close_to_float32_as_in_the_decoder_itself_also_from_a_remembered_beginning(
    tiny_world: World, slow: UserEncoder
) -> None:
    histories = rows([[a, a + 1, a + 2, a + 3] for a in range(20)])
    exact = torch.from_numpy(slow.encode(histories))
    own = torch.from_numpy(encoder_of(tiny_world, "bfloat16").encode(histories))
    engine = engine_of(tiny_world, ONLY_PREFIXES, "bfloat16")
    for _ in ("computed", "remembered"):
        ours = torch.from_numpy(engine.encode(histories))
        assert F.cosine_similarity(ours, exact).mean() >= F.cosine_similarity(own, exact).mean()


def test_after_the_warm_up_nothing_is_remembered_and_no_other_engine_repeats_it(tiny_world: World) -> None:
    encoder = encoder_of(tiny_world)
    decoder = encoder.language_model.pack()
    first, second = (Engine(encoder, decoder, CacheSizes()) for _ in range(2))
    history = rows([[1, 2, 3, 4]])[0]
    fresh = first.num_tokens(history)
    first.warm_up(history)
    assert first.num_tokens(history) == fresh
    second.warm_up(history)
    assert "forward" in first.stages.seconds
    assert "forward" not in second.stages.seconds

"""What is served, over a world that the real jobs made: scores, exclusions, cuts, and a new version."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_language_model
from worlds import World

from model.checkpoint import Checkpoint
from model.config import HeadsConfig, LanguageModelConfig
from model.errors import ArtifactError, NotReadyError
from model.heads import Heads
from model.index import build_index
from model.joined import equal_weights
from model.language_model import LanguageModel, load_language_model
from model.ranking import Query, Ranking, Weights
from model.recommender import Recommender
from model.store import Store
from offline.evaluate import all_parts, blocks_of, encode_users, load_test
from offline.reindex import PUBLISHED, main

CPU = torch.device("cpu")


def ids_of(world: World, rows: Sequence[int] | np.ndarray) -> tuple[str, ...]:
    return tuple(world.dataset.item_ids[row] for row in rows)


def all_ids(world: World) -> tuple[str, ...]:
    return ids_of(world, range(world.catalog.num_items))


def histories_of(world: World) -> list[tuple[str, ...]]:
    """Everything but the test event of every user: 4 to 7 items, where the prompt shows 4."""
    return [ids_of(world, events[:-1]) for events in world.dataset.events]


def answer(world: World, *history: str, **query: object) -> Ranking:
    return world.recommender.rank([Query(history, **query)])[0]  # type: ignore[arg-type]


def found(ranking: Ranking) -> list[str]:
    return [item.item_id for item in ranking.items]


def addends_by_id(ranking: Ranking) -> dict[str, tuple[float, float, float]]:
    return {item.item_id: astuple(item.signals) for item in ranking.items if item.signals}


def with_heads(checkpoint: Checkpoint, heads: Heads) -> Checkpoint:
    return replace(checkpoint, joined=replace(checkpoint.joined, heads=heads))


def language_model_of(world: World) -> LanguageModel:
    return load_language_model(world.config.language_model, world.store.models, CPU)


def test_scores_are_the_sum_of_three_addends_and_those_of_brute_force_with_what_evaluation_measures(
    tiny_world: World,
) -> None:
    catalog, dataset = tiny_world.catalog, tiny_world.dataset
    joined, store = tiny_world.checkpoint.joined, tiny_world.store
    test = load_test(tiny_world.checkpoint, store)
    language_model = encode_users(tiny_world.checkpoint, test, test.cases.histories, store)
    blocks = blocks_of(all_parts(tiny_world.checkpoint, test), language_model, test)
    user_UQ = blocks.vectors(joined.weights).user_UQ
    item_NQ = joined.item_vectors(catalog.features)
    rankings = tiny_world.recommender.rank([Query(history, k=100) for history in histories_of(tiny_world)])
    for user_Q, events, ranking in zip(user_UQ.astype(np.float64), dataset.events, rankings, strict=True):
        image, cf, text = np.split(user_Q * item_NQ, np.cumsum(joined.widths)[:-1], axis=1)
        addend_N3 = np.stack([image.sum(1), cf.sum(1), text.sum(1)], axis=1)
        score_N = addend_N3.sum(axis=1)
        expected = [row for row in np.argsort(-score_N, kind="stable") if row not in events[:-1]]
        assert found(ranking) == [catalog.item_id(row) for row in expected]
        np.testing.assert_allclose([item.score for item in ranking.items], score_N[expected], atol=1e-4)
        np.testing.assert_allclose(list(addends_by_id(ranking).values()), addend_N3[expected], atol=1e-4)
        for item in ranking.items:
            assert item.source == "model"
            assert item.signals is not None
            assert sum(astuple(item.signals)) == pytest.approx(item.score, abs=1e-9)


def test_different_histories_get_different_rankings(tiny_world: World) -> None:
    rankings = tiny_world.recommender.rank([Query(history, allow_repeats=True) for history in histories_of(tiny_world)])
    assert len({tuple(found(ranking)) for ranking in rankings}) > len(rankings) / 2


def test_items_of_the_history_are_never_returned_even_those_too_old_to_be_read(tiny_world: World) -> None:
    queries = [Query(history, k=100) for history in histories_of(tiny_world)]
    for query, ranking in zip(queries, tiny_world.recommender.rank(queries), strict=True):
        assert not set(found(ranking)) & set(query.history)


def test_a_k_beyond_the_catalog_gives_every_eligible_item_once(tiny_world: World) -> None:
    history = histories_of(tiny_world)[0]
    ranking = answer(tiny_world, *history, k=100, exclude=frozenset({"i0023"}))
    assert sorted(found(ranking)) == sorted(set(all_ids(tiny_world)) - set(history) - {"i0023"})


def test_repeats_are_returned_on_demand_with_the_same_scores_for_the_others(tiny_world: World) -> None:
    history = histories_of(tiny_world)[0]
    without, with_repeats = answer(tiny_world, *history, k=100), answer(tiny_world, *history, k=100, allow_repeats=True)
    assert sorted(found(with_repeats)) == list(all_ids(tiny_world))
    assert [item for item in with_repeats.items if item.item_id not in history] == list(without.items)


def test_excluded_items_make_room_for_the_next_ones(tiny_world: World) -> None:
    history = histories_of(tiny_world)[0]
    best = found(answer(tiny_world, *history, k=5))
    excluding = frozenset({best[0], best[2], "unheard of"})
    ranking = answer(tiny_world, *history, k=3, exclude=excluding, allow_repeats=False)
    assert found(ranking) == [best[1], best[3], best[4]]


def test_a_history_that_leaves_nothing_to_return_has_an_empty_answer(tiny_world: World) -> None:
    everything = all_ids(tiny_world)
    empty, other = tiny_world.recommender.rank([Query(everything), Query(everything[:2])])
    assert found(empty) == []
    assert found(other)


def test_excluded_items_stay_out_where_repeats_are_allowed(tiny_world: World) -> None:
    ranking = answer(tiny_world, "i0004", "i0005", k=100, exclude=frozenset({"i0004"}), allow_repeats=True)
    assert "i0004" not in found(ranking)
    assert "i0005" in found(ranking)


def test_unknown_ids_are_reported_once_in_order_and_change_nothing_else(tiny_world: World) -> None:
    mixed, known = answer(tiny_world, "z", "i0004", "a", "z", "i0008", "m"), answer(tiny_world, "i0004", "i0008")
    assert mixed == replace(known, unknown_items=("z", "a", "m"))
    assert (known.history_used, known.history_truncated) == (2, False)


@pytest.mark.parametrize("history", [(), ("nothing", "known")], ids=["empty", "all unknown"])
def test_without_a_known_item_the_answer_is_what_is_popular_by_share_of_events(
    tiny_world: World, history: tuple[str, ...]
) -> None:
    num_events = tiny_world.dataset.num_train_events
    rows = np.argsort(-num_events, kind="stable")
    ranking = answer(tiny_world, *history, k=100)
    assert found(ranking) == list(ids_of(tiny_world, rows))
    assert [item.score for item in ranking.items] == pytest.approx((num_events / num_events.sum())[rows].tolist())
    assert sum(item.score for item in ranking.items) == pytest.approx(1)
    assert {(item.source, item.signals) for item in ranking.items} == {("popular", None)}
    assert (ranking.unknown_items, ranking.history_used, ranking.history_truncated) == (history, 0, False)


def test_the_popular_answer_leaves_excluded_items_out_and_stays_k_long(tiny_world: World) -> None:
    best = found(answer(tiny_world, k=4))
    assert found(answer(tiny_world, k=3, exclude=frozenset({best[0]}))) == best[1:]


def test_weights_scale_the_addends_and_the_order_follows(tiny_world: World) -> None:
    history = histories_of(tiny_world)[0]
    plain = addends_by_id(answer(tiny_world, *history, k=100))
    ranking = answer(tiny_world, *history, k=100, weights=Weights(image=0.0, cf=2.0, text=0.5))
    for item_id, addends in addends_by_id(ranking).items():
        _, cf, text = plain[item_id]
        assert addends == pytest.approx((0, 2 * cf, text / 2), abs=1e-9)
    scores = [item.score for item in ranking.items]
    assert scores == sorted(scores, reverse=True)
    assert found(ranking) != list(plain)


def test_a_long_history_is_cut_to_its_newest_items_and_says_so(tiny_world: World) -> None:
    history = next(history for history in histories_of(tiny_world) if len(history) == 7)
    whole = answer(tiny_world, *history)
    newest = answer(tiny_world, *history[-4:], exclude=frozenset(history[:-4]))
    oldest = answer(tiny_world, *history[:4], exclude=frozenset(history[4:]))
    assert (whole.history_used, whole.history_truncated) == (4, True)
    assert whole.items != newest.items  # SASRec and the pooled part read on
    assert whole.items != oldest.items


def test_the_language_model_s_part_reads_the_newest_items_only(tiny_world: World) -> None:
    checkpoint = tiny_world.checkpoint
    alone = replace(checkpoint.joined, weights=equal_weights(["language_model"]))
    catalog = replace(tiny_world.catalog, item_vectors=alone.item_vectors(tiny_world.catalog.features))
    catalog = replace(catalog, index=build_index(catalog.item_vectors))
    paper = Recommender(replace(checkpoint, joined=alone), catalog, language_model_of(tiny_world), tiny_world.store)
    history = next(history for history in histories_of(tiny_world) if len(history) == 7)
    whole, newest = paper.rank([Query(history, 5), Query(history[-4:], 5, exclude=frozenset(history[:-4]))])
    assert whole == replace(newest, history_truncated=True)


def test_the_order_of_a_history_matters(tiny_world: World) -> None:
    assert answer(tiny_world, "i0004", "i0009").items != answer(tiny_world, "i0009", "i0004").items


def test_a_batch_of_all_kinds_is_answered_as_one_by_one(tiny_world: World) -> None:
    histories = [history[-(1 + at % 6) :] for at, history in enumerate(histories_of(tiny_world))]
    weights = [Weights(), Weights(image=0), Weights(cf=3)]
    queries = [Query(history, k=1 + at % 9, weights=weights[at % 3]) for at, history in enumerate(histories)]
    queries += [Query(()), Query(("unheard of",), k=2), Query(histories[0], allow_repeats=True)]
    together = tiny_world.recommender.rank(queries)
    for query, in_batch in zip(queries, together, strict=True):
        (alone,) = tiny_world.recommender.rank([query])
        assert found(in_batch) == found(alone)
        # Padding changes the order of float32 sums in the language model; scores here are about 5.
        assert [item.score for item in in_batch.items] == pytest.approx([i.score for i in alone.items], abs=1e-3)
        assert replace(in_batch, items=()) == replace(alone, items=())


def test_no_queries_have_no_answers(tiny_world: World) -> None:
    assert tiny_world.recommender.rank([]) == []


def test_an_answer_names_checkpoint_and_catalog(tiny_world: World) -> None:
    ranking = answer(tiny_world, "i0004")
    assert ranking.checkpoint == tiny_world.checkpoint.id
    assert ranking.catalog_version == tiny_world.catalog.version


def test_warming_up_ranks_the_canaries(tiny_world: World) -> None:
    assert len(tiny_world.checkpoint.canaries) > 1
    tiny_world.recommender.warm_up()


def test_warming_up_refuses_a_checkpoint_that_gives_no_numbers(tiny_world: World) -> None:
    heads = copy.deepcopy(tiny_world.checkpoint.heads)
    heads.rec.data.fill_(float("nan"))
    broken = with_heads(tiny_world.checkpoint, heads)
    recommender = Recommender(broken, tiny_world.catalog, language_model_of(tiny_world), tiny_world.store)
    with pytest.raises(ArtifactError, match="not finite"):
        recommender.warm_up()


def test_an_empty_store_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match=r"offline\.reindex"):
        Recommender.load(Store(tmp_path))


def test_a_catalog_of_another_checkpoint_is_refused(tiny_world: World) -> None:
    other = replace(tiny_world.checkpoint, id="other-1")
    with pytest.raises(ArtifactError, match=f"made with checkpoint {tiny_world.checkpoint.id}, not other-1: reindex"):
        Recommender(other, tiny_world.catalog, language_model_of(tiny_world), tiny_world.store)


def test_heads_of_another_width_are_refused(tiny_world: World) -> None:
    heads = Heads(HeadsConfig(shared_width=4, adaptor_width=4), 32, tiny_world.catalog.features.widths(), 1.0)
    with pytest.raises(ArtifactError, match="item vectors of width 56; its checkpoint makes 44"):
        Recommender(
            with_heads(tiny_world.checkpoint, heads),
            tiny_world.catalog,
            language_model_of(tiny_world),
            tiny_world.store,
        )


def test_a_language_model_of_another_width_is_refused(tiny_world: World, tmp_path: Path) -> None:
    source = tiny_language_model(tmp_path / "narrow", hidden_size=16)
    narrow = load_language_model(LanguageModelConfig(source=str(source), dtype="float32"), tmp_path, CPU)
    with pytest.raises(ArtifactError, match="language model of width 32; the one loaded has 16"):
        Recommender(tiny_world.checkpoint, tiny_world.catalog, narrow, tiny_world.store)


def test_a_new_version_is_loaded_beside_the_one_that_answers(tiny_world: World, tmp_path: Path) -> None:
    world = tiny_world.copy(tmp_path)
    old = world.recommender
    before = old.rank([Query(("i0004",))])[0]
    assert old.reload().catalog_version == old.catalog_version
    arguments = ["--store", str(world.store.root), "--checkpoint", old.checkpoint_id]
    assert main([*arguments, "--force"]) == PUBLISHED
    new = old.reload()
    assert new.catalog_version > old.catalog_version
    assert new.rank([Query(("i0004",))])[0] == replace(before, catalog_version=new.catalog_version)
    assert old.rank([Query(("i0004",))])[0] == before
    assert new.reload(old.catalog_version).catalog_version == old.catalog_version


def test_a_new_version_of_another_checkpoint_and_language_model_is_loaded(tiny_world: World, tmp_path: Path) -> None:
    world = tiny_world.copy(tmp_path)
    other = world.with_settings(language_model={"num_layers": 1})
    loaded = world.recommender.reload(tiny_world.catalog.version).reload()
    assert loaded.checkpoint_id == other.checkpoint.id != tiny_world.checkpoint.id
    assert loaded.rank([Query(("i0004",))]) == other.recommender.rank([Query(("i0004",))])
    loaded.warm_up()


def test_a_version_that_is_not_there_is_refused_by_name(tiny_world: World) -> None:
    with pytest.raises(ArtifactError, match="20200101T000000Z-abcdef"):
        tiny_world.recommender.reload("20200101T000000Z-abcdef")


@pytest.mark.parametrize("history", [("i0003", "i0004"), ()])
def test_filters_keep_what_is_of_a_category_and_a_brand_and_nothing_else(
    tiny_world: World, history: tuple[str, ...]
) -> None:
    items = [tiny_world.catalog.item(row) for row in range(tiny_world.catalog.num_items)]
    like = next(item for item in items if item.category and item.brand)
    wanted = {item.item_id for item in items if (item.category, item.brand) == (like.category, like.brand)}
    filters = {"categories": frozenset({like.category}), "brands": frozenset({like.brand, "none"})}
    ranking = answer(tiny_world, *history, k=100, **filters)
    assert set(found(ranking)) == wanted - set(history)


def test_a_filter_that_no_item_passes_gives_an_empty_answer(tiny_world: World) -> None:
    for history in (("i0003",), ()):
        empty = answer(tiny_world, *history, categories=frozenset({"no such category"}))
        assert (empty.items, empty.unknown_filters) == ((), ("no such category",))

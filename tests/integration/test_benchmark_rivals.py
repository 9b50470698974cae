"""The rivals of the serving benchmark answer as ours does: otherwise their speed would say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from worlds import World

from benchmarks.rivals import Naive, Padded, Rival
from model.ranking import Query


def queries(world: World) -> list[Query]:
    generator = np.random.default_rng(0)
    ids = world.dataset.item_ids
    return [Query(tuple(generator.choice(ids, length, replace=False)), k=5) for length in (1, 3, 2, 6)]


@pytest.fixture(params=["naive", "naive without head", "padded"])
def rival(request: pytest.FixtureRequest, tiny_world: World) -> Rival:
    store, version = tiny_world.store, tiny_world.catalog.version
    if request.param == "padded":
        return Padded(store, version, "cpu")
    return Naive(store, version, "cpu", head=request.param == "naive")


def test_a_rival_ranks_as_ours_does(rival: Rival, tiny_world: World) -> None:
    ours = tiny_world.recommender.rank(queries(tiny_world))
    theirs = rival.rank_prepared([rival.prepare(query) for query in queries(tiny_world)])
    for mine, its in zip(ours, theirs, strict=True):
        assert [item.item_id for item in its.items] == [item.item_id for item in mine.items]
        assert np.allclose([item.score for item in its.items], [item.score for item in mine.items], atol=1e-4)


def test_a_rival_gives_addends_that_sum_to_the_score(rival: Rival, tiny_world: World) -> None:
    (ranking,) = rival.rank_prepared([rival.prepare(queries(tiny_world)[1])])
    for item in ranking.items:
        assert item.signals is not None
        assert item.signals.image + item.signals.cf + item.signals.text == pytest.approx(item.score, abs=1e-4)


def test_a_rival_says_where_its_time_goes(rival: Rival, tiny_world: World) -> None:
    rival.rank_prepared([rival.prepare(queries(tiny_world)[0])])
    assert {"assemble", "forward", "search"} <= set(rival.stage_s)
    assert all(seconds > 0 for seconds in rival.stage_s.values())

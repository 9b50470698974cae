"""The picture of the demo's result over a world that the real jobs made."""

from __future__ import annotations

from pathlib import Path

import pytest
from worlds import World

from model.errors import InvalidInputError
from model.ranking import Query
from offline.demo.picture import NUM_ANSWERS, NUM_SHOPPERS, draw, look, main


def test_shoppers_are_shown_as_the_recommender_ranks_for_them(tiny_world: World) -> None:
    world = tiny_world
    shoppers = look(world.recommender, world.dataset, world.store.images, seed=1)
    assert len(shoppers) == NUM_SHOPPERS
    all_bought = [[world.dataset.item_ids[row] for row in events] for events in world.dataset.events]
    items = world.catalog.items.table
    title_of = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    for shopper in shoppers:
        shown = [tile.title for tile in (*shopper.history, shopper.target)]
        bought = next(b for b in all_bought if [title_of[i] for i in b][-len(shown) :] == shown)
        ranking = world.recommender.rank([Query(tuple(bought[:-1]), k=world.catalog.num_items)])[0]
        ranked = [item.item_id for item in ranking.items]
        assert shopper.rank == ranked.index(bought[-1]) + 1
        assert [answer.tile.title for answer in shopper.answers] == [title_of[i] for i in ranked[:NUM_ANSWERS]]
        assert [answer.was_bought_next for answer in shopper.answers] == [i == bought[-1] for i in ranked[:NUM_ANSWERS]]


def test_the_same_seed_gives_the_same_picture(tiny_world: World) -> None:
    world = tiny_world
    pictures = [draw(look(world.recommender, world.dataset, world.store.images, seed=0), "c") for _ in range(2)]
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_data_that_is_not_the_demo_is_not_called_synthetic(tiny_world: World, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="'tiny'"):
        main(["--store", str(tiny_world.store.root), "--out", str(tmp_path / "demo.jpg")])

"""Reindexing with an approximate index: refused where it finds too little, described in the manifest, served."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from worlds import World

from model.catalog import Catalog, current_version
from model.ranking import Query
from model.recommender import Recommender
from offline.reindex import PUBLISHED, REFUSED, UNUSABLE, main

NUM_ITEMS = 1200


@pytest.fixture(scope="module")
def world(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world.copy(tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="module")
def items(world: World) -> Path:
    """The items of the dataset, and so many more that lists are worth having."""
    rng = np.random.default_rng(0)
    words = ["red", "blue", "oak", "lamp", "rug", "vase", "tall", "old", "round", "soft", "chair", "clock"]
    known = world.catalog.items.table.select(["item_id", "title", "brand", "category"]).to_pylist()
    more = [{"item_id": f"m{n:04}", "title": " ".join(rng.choice(words, 4))} for n in range(NUM_ITEMS - len(known))]
    path = world.store.root / "many.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in known + more))
    return path


def reindex(world: World, *arguments: str) -> int:
    return main(["--store", str(world.store.root), "--config", "tiny", *arguments])


def served(world: World) -> Catalog:
    version = current_version(world.store.catalogs)
    assert version is not None
    return Catalog.load(world.store.catalogs / version)


def test_a_small_catalog_is_searched_exactly_and_says_so(world: World) -> None:
    facts = served(world).manifest["index"]
    assert (facts["kind"], facts["bytes"]) == ("exact", 0)
    assert facts["recall"] == {"recall@10": 1.0, "recall@100": 1.0}
    assert facts["max_norm"] == pytest.approx(np.linalg.norm(served(world).item_vectors, axis=1).max())


def test_too_few_items_for_the_wanted_kind_leave_the_old_version(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    before = current_version(world.store.catalogs)
    assert reindex(world, "--index", "hnsw") == UNUSABLE
    assert "24 items are too few for an index of kind hnsw: use exact" in capsys.readouterr().err
    assert current_version(world.store.catalogs) == before


def test_an_index_below_the_wanted_recall_is_refused_with_what_it_reached(
    world: World, items: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = current_version(world.store.catalogs)
    assert reindex(world, "--items", str(items), "--index", "ivf-pq", "--min-recall", "0.99999") == REFUSED
    said = capsys.readouterr().err
    assert "the ivf-pq index has recall@10 0." in said
    assert "under --min-recall 0.99999" in said
    assert "--index ivf-sq8 or exact" in said
    assert current_version(world.store.catalogs) == before


def test_an_approximate_index_is_described_in_the_manifest_and_served(world: World, items: Path) -> None:
    assert reindex(world, "--items", str(items), "--index", "ivf-sq8", "--min-recall", "0.8") == PUBLISHED
    catalog = served(world)
    facts = catalog.manifest["index"]
    assert facts["kind"] == "ivf-sq8"
    assert facts["recall"]["recall@10"] >= facts["min_recall"] == 0.8
    assert catalog.manifest["checks"]["recall"] == facts["recall"]
    assert {"index.faiss", "index_lists.npy"} <= set(catalog.manifest["files"])
    assert not catalog.index.is_exact
    ranking = Recommender.load(world.store, device="cpu").rank([Query(("i0005", "i0006"), k=30)])[0]
    assert len(ranking.items) == 30


def test_another_kind_of_index_is_a_change_that_is_published(world: World, items: Path) -> None:
    assert reindex(world, "--items", str(items), "--index", "exact") == PUBLISHED
    version = served(world).version
    assert reindex(world, "--items", str(items), "--index", "exact") == PUBLISHED
    assert served(world).version == version  # nothing changed
    assert reindex(world, "--items", str(items), "--index", "ivf-flat", "--min-recall", "0.5") == PUBLISHED
    assert served(world).version != version


@pytest.mark.parametrize("share", ["0", "1", "1.5"])
def test_a_recall_that_is_no_share_is_refused(world: World, share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        reindex(world, "--min-recall", share)
    assert "not between 0 and 1" in capsys.readouterr().err

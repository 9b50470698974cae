"""The program as a user runs it: a service process over a trained model, and a reindex beside it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from servers import Server, load_while, served, wait_for_version
from worlds import NUM_ITEMS, World

from model.catalog import current_version
from model.ranking import Query

ROOT = Path(__file__).resolve().parents[2]
HISTORY = ["i0004", "i0008", "i0012"]
NEW_ITEM = {
    "item_id": "new-1",
    "title": "Striped Arbor Lamp",
    "brand": "Arbor",
    "category": "Lamps",
    "description": "A lamp that nobody has bought yet.",
    "image": "images/new-1.png",
}


@pytest.fixture(scope="module")
def world(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    return tiny_world.copy(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[Server]:
    with served(world.store.root, ("-m", "service")) as server:
        with server.client() as client:
            wait_for_version(client, world.catalog.version)
        yield server


def test_the_service_says_what_it_serves(server: Server, world: World) -> None:
    with server.client() as client:
        ready = client.get("/health/ready").json()
    assert ready["status"] == "ready"
    assert (ready["catalog_version"], ready["checkpoint"]) == (world.catalog.version, world.checkpoint.id)
    assert ready["num_items"] == NUM_ITEMS


def test_a_recommendation_is_what_the_recommender_says(server: Server, world: World) -> None:
    request = {"history": [*HISTORY, "unheard of"], "k": 5, "include": ["title"]}
    with server.client() as client:
        answer = client.post("/recommend", json=request).json()
    (expected,) = world.recommender.rank([Query((*HISTORY, "unheard of"), k=5)])
    assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in expected.items]
    for item, ranked in zip(answer["items"], expected.items, strict=True):
        assert item["score"] == pytest.approx(ranked.score, abs=1e-3)
        assert sum(item["signals"].values()) == pytest.approx(item["score"], abs=1e-6)
        assert item["source"] == "model"
        assert item["title"]
    assert answer["unknown_items"] == ["unheard of"]
    assert (answer["history_used"], answer["history_truncated"]) == (3, False)
    assert (answer["checkpoint"], answer["catalog_version"]) == (world.checkpoint.id, world.catalog.version)


def test_an_item_is_shown_with_its_own_picture(server: Server, world: World) -> None:
    with server.client() as client:
        item = client.get("/items/i0005").json()
        picture = client.get(item["image_url"])
    row = world.dataset.items.slice(5, 1).to_pylist()[0]
    assert {name: item[name] for name in ("item_id", "title", "brand", "category", "description")} == {
        name: row[name] for name in ("item_id", "title", "brand", "category", "description")
    }
    assert item["signals"] == {"image": True, "cf": True, "text": True}
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.content == (world.dataset.folder / row["image"]).read_bytes()


def test_an_item_without_a_picture_says_so(server: Server) -> None:
    with server.client() as client:
        item, picture = client.get("/items/i0000").json(), client.get("/items/i0000/image")
    assert item["image_url"] is None
    assert item["signals"]["image"], "the text tower speaks for it"
    assert (picture.status_code, picture.json().keys()) == (404, {"code", "message", "field", "request_id"})


def test_a_new_item_is_served_after_a_reindex_without_a_restart_or_a_failed_request(
    tiny_world: World, tmp_path: Path
) -> None:
    world = tiny_world.copy(tmp_path)
    items = items_with_one_more(world, tmp_path / "shop")
    before = world.catalog.version
    request = {"history": HISTORY, "k": NUM_ITEMS + 1}
    with served(world.store.root, ("-m", "service")) as server, server.client() as client:
        wait_for_version(client, before)
        pid = server.process.pid
        assert client.get("/items/new-1").status_code == 404

        def publish() -> None:
            reindex(world, items)
            wait_for_version(client, str(current_version(world.store.catalogs)))

        answers = asyncio.run(load_while(server.url, request, publish, num_callers=2))
        assert server.process.poll() is None
        assert server.process.pid == pid
        item = client.get("/items/new-1").json()
        picture = client.get("/items/new-1/image")
        final = client.post("/recommend", json=request).json()
    after = str(current_version(world.store.catalogs))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["catalog_version"] for answer in answers} == {before, after}
    assert item["signals"] == {"image": True, "cf": False, "text": True}
    assert picture.content == (items.parent / NEW_ITEM["image"]).read_bytes()
    ids = [found["item_id"] for found in final["items"]]
    assert len(ids) == NUM_ITEMS + 1 - len(HISTORY)
    new = final["items"][ids.index("new-1")]
    assert new["source"] == "model"
    assert new["signals"]["cf"] == 0
    assert new["signals"]["image"] != 0


def items_with_one_more(world: World, folder: Path) -> Path:
    """An items file beside its pictures, as a shop would give it: all items of the dataset, and a new one."""
    shutil.copytree(world.dataset.folder / "images", folder / "images")
    Image.new("RGB", (40, 40), (200, 30, 30)).save(folder / NEW_ITEM["image"])
    items: list[dict[str, Any]] = [*world.dataset.items.to_pylist(), NEW_ITEM]
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def reindex(world: World, items: Path) -> None:
    arguments = ["--store", str(world.store.root), "--checkpoint", world.checkpoint.id, "--items", str(items)]
    done = subprocess.run(
        [sys.executable, "-m", "offline.reindex", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "(1 added, 0 removed, 0 changed)" in done.stdout
    assert "encoded     image 1, text 1 " in done.stdout

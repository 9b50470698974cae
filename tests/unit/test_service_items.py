"""Items over HTTP, in this process: ids of any shape, pictures, pages."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from fakes import SHELF, FakeItem, publish, serving

PNG = b"\x89PNG\r\n\x1a\n and the rest"


def save_picture(store: Path, name: str = "ab/ab12.png", content: bytes = PNG) -> None:
    path = store / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


async def test_an_item_is_shown_with_its_signals(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        response = await client.get("/items/blue%20bowl")
    assert response.json() == {
        "item_id": "blue bowl",
        "title": "Bowl, blue",
        "brand": None,
        "category": None,
        "description": None,
        "image_url": None,
        "signals": {"image": True, "cf": False, "text": True},
        "catalog_version": "v1",
    }


@pytest.mark.parametrize("item_id", [item.item_id for item in SHELF])
async def test_any_id_works_percent_encoded(tmp_path: Path, item_id: str) -> None:
    async with serving(tmp_path) as client:
        response = await client.get(f"/items/{quote(item_id, safe='')}")
    assert (response.status_code, response.json()["item_id"]) == (200, item_id)


async def test_an_id_with_a_bare_slash_works_too(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        assert (await client.get("/items/blue/mug")).json()["item_id"] == "blue/mug"


async def test_an_unknown_item_is_not_found(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        response = await client.get("/items/gone", headers={"X-Request-ID": "mine"})
    assert response.status_code == 404
    assert response.json() == {
        "code": "item_not_found",
        "message": "catalog v1 has no item 'gone'",
        "field": None,
        "request_id": "mine",
    }


@pytest.mark.parametrize("encoded", ["%ff", "%ED%A0%80", "%00", "x" * 5000, "..%2f..%2fetc%2fpasswd"])
async def test_an_id_that_cannot_be_is_not_found(tmp_path: Path, encoded: str) -> None:
    async with serving(tmp_path) as client:
        responses = [await client.get(f"/items/{encoded}{suffix}") for suffix in ("", "/image")]
    assert [response.status_code for response in responses] == [404, 404]


async def test_a_picture_is_served_by_what_it_is(tmp_path: Path) -> None:
    save_picture(tmp_path)
    async with serving(tmp_path) as client:
        url = (await client.get("/items/blue%2Fmug")).json()["image_url"]
        response = await client.get(url)
    assert (response.status_code, response.content) == (200, PNG)
    assert response.headers["Content-Type"] == "image/png"
    assert response.headers["ETag"] == '"ab12"'


@pytest.mark.parametrize(
    ("start", "media_type"),
    [(b"\xff\xd8\xff\xe0", "image/jpeg"), (b"RIFF\0\0\0\0WEBP", "image/webp"), (b"<svg", "application/octet-stream")],
)
async def test_the_name_of_a_picture_may_lie(tmp_path: Path, start: bytes, media_type: str) -> None:
    save_picture(tmp_path, content=start)
    async with serving(tmp_path) as client:
        assert (await client.get("/items/blue%2Fmug/image")).headers["Content-Type"] == media_type


async def test_a_picture_that_the_caller_has_is_not_sent_again(tmp_path: Path) -> None:
    save_picture(tmp_path)
    async with serving(tmp_path) as client:
        response = await client.get("/items/blue%2Fmug/image", headers={"If-None-Match": '"ab12"'})
    assert (response.status_code, response.content) == (304, b"")


@pytest.mark.parametrize("encoded", ["red%20mug", "blue%2Fmug"])
async def test_a_picture_that_is_not_there_is_not_found(tmp_path: Path, encoded: str) -> None:
    async with serving(tmp_path) as client:
        response = await client.get(f"/items/{encoded}/image")
    assert (response.status_code, response.json()["code"]) == (404, "item_not_found")


async def test_no_picture_is_read_outside_the_store(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)
    async with serving(tmp_path) as client:
        publish(tmp_path, "v2", [FakeItem("thief", image_file="../secret.png")])
        while (await client.get("/items/thief")).status_code != 200:
            pass
        assert (await client.get("/items/thief/image")).status_code == 404


async def test_an_id_that_ends_like_a_route_is_an_id(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        assert (await client.get(f"/items/{quote('thé/image', safe='')}")).json()["item_id"] == "thé/image"


async def pages(client: httpx.AsyncClient, limit: int) -> list[list[str]]:
    found, cursor = [], None
    while True:
        page = (await client.get("/items", params={"limit": limit} | ({"cursor": cursor} if cursor else {}))).json()
        found.append([item["item_id"] for item in page["items"]])
        cursor = page["next_cursor"]
        if cursor is None:
            return found


@pytest.mark.parametrize("limit", [1, 2, 5, 200])
async def test_pages_hold_every_item_once_and_in_order(tmp_path: Path, limit: int) -> None:
    async with serving(tmp_path) as client:
        found = await pages(client, limit)
    assert [item_id for page in found for item_id in page] == [item.item_id for item in SHELF]
    assert all(0 < len(page) <= limit for page in found)


async def test_items_are_looked_up_in_the_order_asked(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        page = (await client.get("/items", params={"ids": ["blue/mug", "gone", "red mug"]})).json()
    assert [item["item_id"] for item in page["items"]] == ["blue/mug", "red mug"]
    assert page["unknown_items"] == ["gone"]


def cursor_of(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    ["", "nonsense", "ünïcode"]
    + [cursor_of(value) for value in (["v1"], ["v1", -1], ["v1", 5], ["v1", True], {"v1": 1}, 7, [7, 7], "[" * 700)],
)
async def test_a_cursor_that_is_none_is_refused(tmp_path: Path, cursor: str) -> None:
    async with serving(tmp_path) as client:
        response = await client.get("/items", params={"cursor": cursor})
    assert (response.status_code, response.json()["field"]) == (422, "cursor")


async def test_a_cursor_of_another_catalog_is_gone(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        cursor = (await client.get("/items", params={"limit": 1})).json()["next_cursor"]
        publish(tmp_path, "v2", SHELF)
        while (await client.get("/items")).json()["catalog_version"] != "v2":
            pass
        response = await client.get("/items", params={"cursor": cursor})
    assert (response.status_code, response.json()["code"]) == (410, "stale_cursor")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=two", "limit"),
        ("page=2", "page"),
        ("ids=", "ids.0"),
        ("ids=a&cursor=b", "cursor"),
        ("&".join(["ids=a"] * 101), "ids"),
    ],
)
async def test_an_unusable_listing_is_refused_by_field(tmp_path: Path, query: str, field: str) -> None:
    async with serving(tmp_path) as client:
        response = await client.get(f"/items?{query}")
    assert (response.status_code, response.json()["field"]) == (422, field)

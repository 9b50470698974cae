"""POST /recommend, in this process: worked-out rankings, and a request that is wrong in every way we know."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import POISON, FakePublications, running, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.settings import Settings

JSON = {"Content-Type": "application/json"}


async def recommended(client: httpx.AsyncClient, **request: Any) -> dict[str, Any]:
    response = await client.post("/recommend", json=request)
    assert response.status_code == 200, response.text
    return response.json()


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


async def test_a_history_is_ranked_with_its_three_addends(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        answer = await recommended(client, history=["red mug"], k=2)
    recommendation_id = answer.pop("recommendation_id")
    assert len(recommendation_id) == 36
    assert answer == {
        "checkpoint": "fake",
        "catalog_version": "v1",
        "items": [
            {"item_id": "red bowl", "score": 2, "signals": {"image": 1, "cf": 0, "text": 1}, "source": "model"},
            {"item_id": "blue/mug", "score": 2, "signals": {"image": 0, "cf": 1, "text": 1}, "source": "model"},
        ],
        "unknown_items": [],
        "unknown_filters": [],
        "history_used": 1,
        "history_truncated": False,
    }


async def test_an_empty_history_gets_what_is_popular(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        answer = await recommended(client, history=[], k=1)
    assert answer["items"] == [{"item_id": "red bowl", "score": 0.5, "signals": None, "source": "popular"}]


async def test_excluded_items_repeats_and_weights_reach_the_recommender(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        without = await recommended(client, history=["red mug"], exclude=["red bowl"], k=1)
        repeats = await recommended(client, history=["red mug"], allow_repeats=True, k=1)
        looks = await recommended(client, history=["red mug"], weights={"cf": 0, "text": 0.5, "image": 3}, k=1)
    assert ids(without) == ["blue/mug"]
    assert ids(repeats) == ["red mug"]
    assert looks["items"][0]["signals"] == {"image": 3, "cf": 0, "text": 0.5}


async def test_only_items_of_the_categories_and_brands_named_are_returned(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        by_category = await recommended(client, history=["red bowl"], categories=["Mugs", "Pots"])
        by_both = await recommended(client, history=["red bowl"], categories=["Mugs"], brands=["Kiln"])
    assert ids(by_category) == ids(by_both) == ["red mug"]


async def test_names_that_no_item_has_give_an_empty_answer_that_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        answer = await recommended(client, history=["red bowl"], categories=["Pots"], brands=["Kiln", "Ember"])
    assert (ids(answer), answer["unknown_filters"]) == ([], ["Ember", "Pots"])


async def test_unknown_items_are_reported(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        answer = await recommended(client, history=["gone", "red mug", "gone"])
    assert answer["unknown_items"] == ["gone"]
    assert answer["history_used"] == 1


async def test_included_fields_and_no_others_come_with_each_item(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        answer = await recommended(client, history=["red mug"], include=["brand", "image_url"], k=2)
    extras = [
        {name: item[name] for name in item.keys() - {"item_id", "score", "signals", "source"}}
        for item in answer["items"]
    ]
    assert extras == [
        {"brand": None, "image_url": "https://x.test/b"},
        {"brand": None, "image_url": "/items/blue%2Fmug/image"},
    ]


async def test_every_answer_has_its_own_id(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        answers = [await recommended(client, history=[]) for _ in range(3)]
    assert len({answer["recommendation_id"] for answer in answers}) == 3


async def test_the_longest_request_is_accepted(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        answer = await recommended(
            client, history=[f"{n:0256}" for n in range(1000)], exclude=["x" * 256] * 500, brands=["b" * 256] * 100
        )
    assert len(answer["unknown_items"]) == 1000


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("{}", "history"),
        ('{"history": "red mug"}', "history"),
        ('{"history": [1]}', "history.0"),
        ('{"history": ["a", ""]}', "history.1"),
        ('{"history": [null]}', "history.0"),
        ('{"history": ["\\ud800"]}', "history.0"),
        ('{"history": [], "categories": "Mugs"}', "categories"),
        ('{"history": [], "brands": ["Kiln", ""]}', "brands.1"),
        ('{"history": [], "k": "5"}', "k"),
        ('{"history": [], "k": true}', "k"),
        ('{"history": [], "k": 5.5}', "k"),
        ('{"history": [], "k": 0}', "k"),
        ('{"history": [], "k": 101}', "k"),
        ('{"history": [], "k": null}', "k"),
        ('{"history": [], "k": NaN}', "k"),
        ('{"history": [], "k": 1e999}', "k"),
        ('{"history": [], "allow_repeats": 1}', "allow_repeats"),
        ('{"history": [], "weights": {"image": NaN}}', "weights.image"),
        ('{"history": [], "weights": {"cf": Infinity}}', "weights.cf"),
        ('{"history": [], "weights": {"text": -1}}', "weights.text"),
        ('{"history": [], "weights": {"text": 100.5}}', "weights.text"),
        ('{"history": [], "weights": {"text": true}}', "weights.text"),
        ('{"history": [], "weights": {"sound": 1}}', "weights.sound"),
        ('{"history": [], "include": ["price"]}', "include.0"),
        ('{"history": [], "colour": "red"}', "colour"),
        ('{"history": [], "\\ud800": "red"}', "body"),
        ('{"history": [], "k": 1' + "0" * 5000 + "}", "body"),
        ("[]", "body"),
        ("null", "body"),
        ("", "body"),
        ("{", "body"),
        ("[" * 100_000, "body"),
        (b'{"history": ["\xff"]}', "body"),
    ],
    ids=lambda value: repr(value[:40]),
)
async def test_an_unusable_request_is_refused_by_field(tmp_path: Path, body: str | bytes, field: str) -> None:
    async with serving(tmp_path) as client:
        response = await client.post("/recommend", content=body, headers={**JSON, "X-Request-ID": "mine"})
    assert response.status_code == 422
    error = response.json()
    assert error.keys() == {"code", "message", "field", "request_id"}
    assert (error["field"], error["request_id"]) == (field, "mine")


@pytest.mark.parametrize(
    ("name", "length"), [("history", 1001), ("exclude", 501), ("categories", 101), ("brands", 101)]
)
async def test_too_long_a_list_is_refused(tmp_path: Path, name: str, length: int) -> None:
    async with serving(tmp_path) as client:
        response = await client.post("/recommend", json={"history": [], name: ["a"] * length})
    assert (response.status_code, response.json()["field"]) == (422, name)


async def test_json_sent_as_something_else_is_told_what_to_change(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        response = await client.post("/recommend", content=b'{"history": []}', headers={"Content-Type": "text/plain"})
    assert response.status_code == 422
    assert "Content-Type: application/json" in response.json()["message"]


async def test_a_bug_is_answered_without_its_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path) as client:
        response = await client.post("/recommend", json={"history": [POISON]})
    assert response.status_code == 500
    assert response.json()["code"] == "internal_error"
    assert response.json()["request_id"] == response.headers["X-Request-ID"]
    assert "secret" not in response.text
    assert "secret detail of a bug" in caplog.text


async def test_a_bug_in_one_request_spares_those_beside_it(tmp_path: Path) -> None:
    async with serving(tmp_path, max_wait_ms=50, max_batch_requests=3) as client:
        histories = [["red mug"], [POISON], []]
        answers = await asyncio.gather(*(client.post("/recommend", json={"history": h}) for h in histories))
    assert [answer.status_code for answer in answers] == [200, 500, 200]


async def test_a_late_ranking_is_given_up(tmp_path: Path) -> None:
    async with serving(tmp_path, request_timeout_s=0.05, max_wait_ms=1000) as client:
        response = await client.post("/recommend", json={"history": []})
    assert (response.status_code, response.json()["code"]) == (504, "timeout")


async def test_without_a_catalog_the_answer_is_not_ready(tmp_path: Path) -> None:
    app = create_app(Settings(store=tmp_path), FakePublications(tmp_path))
    async with running(app) as client:
        response = await client.post("/recommend", json={"history": []})
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
ITEM_IDS = st.lists(st.sampled_from(["red mug", "blue/mug", "gone", ""]) | st.text(max_size=5) | ANY_JSON, max_size=6)
NEARLY_REQUESTS = st.fixed_dictionaries(
    {"history": ITEM_IDS | ANY_JSON},
    optional={
        "k": st.integers(-1, 102) | ANY_JSON,
        "exclude": ITEM_IDS | ANY_JSON,
        "categories": ITEM_IDS | ANY_JSON,
        "brands": ITEM_IDS | ANY_JSON,
        "allow_repeats": st.booleans() | ANY_JSON,
        "include": st.lists(st.sampled_from(["title", "brand", "category", "image_url", "price"])) | ANY_JSON,
        "weights": st.dictionaries(st.sampled_from(["image", "cf", "text", "sound"]), st.floats() | ANY_JSON)
        | ANY_JSON,
        "surprise": ANY_JSON,
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=NEARLY_REQUESTS.map(lambda tree: json.dumps(tree).encode()) | ANY_JSON.map(json.dumps) | st.binary())
def test_no_body_makes_the_service_fail(fuzzed: FuzzedService, body: bytes | str) -> None:
    response = fuzzed.post(body)
    assert response.status_code in (200, 422), response.text
    if response.status_code == 422:
        assert response.json().keys() == {"code", "message", "field", "request_id"}


class FuzzedService:
    """One running service for many examples, called from ordinary functions."""

    def __init__(self, runner: asyncio.Runner, client: httpx.AsyncClient) -> None:
        self._runner = runner
        self._client = client

    def post(self, body: bytes | str) -> httpx.Response:
        return self._runner.run(self._client.post("/recommend", content=body, headers=JSON))


@pytest.fixture
def fuzzed(tmp_path: Path) -> Any:
    with asyncio.Runner() as runner:
        service = serving(tmp_path, max_wait_ms=0)
        client = runner.run(service.__aenter__())
        yield FuzzedService(runner, client)
        runner.run(service.__aexit__(None, None, None))

"""A real server process, spoken to over HTTP. Its recommender is the small one of tests/fakes.py."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes import SHELF, publish, publish_text
from servers import Server, load_while, served, wait_for_version

ERROR_FIELDS = {"code", "message", "field", "request_id"}


def test_an_empty_store_is_served_once_a_catalog_is_published(tmp_path: Path) -> None:
    with served(tmp_path) as server, server.client() as client:
        assert client.get("/health/live").json() == {"status": "live"}
        ready = client.get("/health/ready")
        assert (ready.status_code, ready.json()["code"]) == (503, "not_ready")
        assert "offline.reindex" in ready.json()["message"]
        assert client.post("/recommend", json={"history": []}).status_code == 503
        publish(tmp_path, "v1", SHELF)
        wait_for_version(client, "v1")
        answer = client.post("/recommend", json={"history": ["red mug"], "k": 1}).json()
    assert [item["item_id"] for item in answer["items"]] == ["red bowl"]


def test_the_program_itself_starts_on_an_empty_store(tmp_path: Path) -> None:
    with served(tmp_path, ("-m", "service")) as server, server.client() as client:
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 503
        answer = client.post("/recommend", json={"history": []})
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")


def test_a_swap_fails_no_request(tmp_path: Path) -> None:
    publish(tmp_path, "v0", SHELF)
    versions = [f"v{n}" for n in range(1, 6)]
    request = {"history": ["red mug"], "k": 3, "include": ["title"]}
    with served(tmp_path, FAKE_DELAY_S="0.002") as server, server.client() as client:
        wait_for_version(client, "v0")
        answers = asyncio.run(load_while(server.url, request, lambda: publish_each(tmp_path, client, versions)))
    assert {answer.status_code for answer in answers} == {200}
    seen = Counter(answer.json()["catalog_version"] for answer in answers)
    assert set(seen) >= {"v0", "v5"}
    bodies = [answer.json() for answer in answers]
    assert all(len(body["items"]) == 3 and body["items"][0]["title"] == "Bowl" for body in bodies)


def publish_each(store: Path, client: httpx.Client, versions: list[str]) -> None:
    for version in versions:
        publish(store, version, SHELF)
        wait_for_version(client, version)


def test_a_damaged_catalog_is_refused_while_the_old_one_answers(tmp_path: Path) -> None:
    publish(tmp_path, "v1", SHELF)
    with served(tmp_path) as server, server.client() as client:
        wait_for_version(client, "v1")
        publish_text(tmp_path, "v2", "[{")
        while (ready := client.get("/health/ready").json())["status"] == "ready":
            time.sleep(0.02)
        assert client.post("/recommend", json={"history": []}).json()["catalog_version"] == "v1"
        publish(tmp_path, "v3", SHELF)
        wait_for_version(client, "v3")
        assert client.get("/health/ready").json()["status"] == "ready"
    assert ready["reason"] == "catalog v2 was refused: v2.json is damaged"
    assert len([line for line in server.lines() if line["level"] == "ERROR"]) == 1


def test_the_whole_catalog_is_paged_through(tmp_path: Path) -> None:
    publish(tmp_path, "v1", SHELF)
    found: list[str] = []
    with served(tmp_path) as server, server.client() as client:
        wait_for_version(client, "v1")
        parameters: dict[str, Any] = {"limit": 2}
        while True:
            page = client.get("/items", params=parameters).json()
            found += [item["item_id"] for item in page["items"]]
            if page["next_cursor"] is None:
                break
            parameters["cursor"] = page["next_cursor"]
        for item_id in found:
            assert client.get(f"/items/{item_id.replace('/', '%2F')}").json()["item_id"] == item_id
    assert found == [item.item_id for item in SHELF]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"history": [], "colour": "red"}', "colour"),
        (b'{"history": [], "weights": {"image": NaN}}', "weights.image"),
        (b'{"history": [], "k": "5"}', "k"),
        (b'{"history": [', "body"),
    ],
)
def test_unusable_requests_are_refused_by_field(running_server: Server, body: bytes, field: str) -> None:
    with running_server.client() as client:
        answer = client.post("/recommend", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert answer.json().keys() == ERROR_FIELDS


def endless(num_bytes: int) -> Iterator[bytes]:
    for _ in range(num_bytes // 4096):
        yield b" " * 4096


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
def test_a_body_above_the_limit_is_refused_over_the_wire(running_server: Server, announced: bool) -> None:
    content = b" " * 4_000_000 if announced else endless(4_000_000)
    with running_server.client() as client:
        answer = client.post("/recommend", content=content, headers={"Content-Type": "application/json"})
        assert client.get("/health/live").status_code == 200
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


def test_an_unknown_route_and_a_wrong_method_have_the_error_form(running_server: Server) -> None:
    with running_server.client() as client:
        answers = [client.get("/nowhere"), client.put("/recommend")]
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [
        (404, "not_found"),
        (405, "method_not_allowed"),
    ]
    assert all(answer.json()["request_id"] == answer.headers["X-Request-ID"] for answer in answers)


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("store")
    publish(store, "v1", SHELF)
    with served(store) as server:
        with server.client() as client:
            wait_for_version(client, "v1")
        yield server


def test_a_full_line_is_answered_at_once_with_when_to_come_back(tmp_path: Path) -> None:
    publish(tmp_path, "v1", SHELF)
    limits = {"RECOMMENDER_MAX_LINE": "2", "RECOMMENDER_MAX_BATCH_REQUESTS": "1", "FAKE_DELAY_S": "0.3"}
    with served(tmp_path, **limits) as server:
        with server.client() as client:
            wait_for_version(client, "v1")
        answers = asyncio.run(ask_at_once(server.url, 10))
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses[200] >= 2
    assert statuses[429] >= 5
    assert set(statuses) == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["code"] == "overloaded"
    assert int(refused.headers["Retry-After"]) >= 1


async def ask_at_once(url: str, num_callers: int) -> list[httpx.Response]:
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        requests = [{"history": [f"unheard of {n}"]} for n in range(num_callers)]
        return await asyncio.gather(*(client.post("/recommend", json=request) for request in requests))


def test_sigterm_answers_what_was_accepted_and_then_stops(tmp_path: Path) -> None:
    publish(tmp_path, "v1", SHELF)
    with served(tmp_path, RECOMMENDER_MAX_BATCH_REQUESTS="1", FAKE_DELAY_S="0.2") as server:
        with server.client() as client:
            wait_for_version(client, "v1")
        answers = asyncio.run(ask_then_stop(server, 5))
        status = server.process.wait(20)
    assert [answer.status_code for answer in answers] == [200] * 5
    assert status in (0, -signal.SIGTERM)


async def ask_then_stop(server: Server, num_callers: int) -> list[httpx.Response]:
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client, asyncio.TaskGroup() as group:
        requests = [{"history": [f"unheard of {n}"]} for n in range(num_callers)]
        asked = [group.create_task(client.post("/recommend", json=request)) for request in requests]
        await asyncio.sleep(0.3)
        server.process.terminate()
    return [await task for task in asked]


def test_nothing_is_ranked_for_a_caller_who_hung_up(tmp_path: Path) -> None:
    publish(tmp_path, "v1", SHELF)
    with served(tmp_path, RECOMMENDER_MAX_BATCH_REQUESTS="1", FAKE_DELAY_S="0.4") as server, server.client() as client:
        wait_for_version(client, "v1")
        callers = [send_and_keep(server.url, b'{"history": ["unheard of %d"]}' % n) for n in range(8)]
        time.sleep(0.1)
        for caller in callers:
            caller.close()
        started = time.monotonic()
        assert client.post("/recommend", json={"history": []}).status_code == 200
        waited_s = time.monotonic() - started
    assert waited_s < 4 * 0.4, "more than the batch under way and its own were computed"
    hung_up = [line for line in server.lines() if line["message"] == "request" and line["status"] == 499]
    assert len(hung_up) == 8


def send_and_keep(url: str, body: bytes) -> socket.socket:
    """Send a request and leave the connection open, its answer unread."""
    host, port = url.removeprefix("http://").split(":")
    caller = socket.create_connection((host, int(port)))
    head = (
        f"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    caller.sendall(head.encode() + body)
    return caller


def test_every_log_line_is_json_and_requests_carry_id_status_and_duration(tmp_path: Path) -> None:
    publish(tmp_path, "v1", SHELF)
    with served(tmp_path) as server, server.client() as client:
        wait_for_version(client, "v1")
        client.post("/recommend", json={"history": ["poison"]}, headers={"X-Request-ID": "order-7"})
    lines = [line for line in server.lines() if line.get("request_id") == "order-7"]
    failure = next(line for line in lines if line["level"] == "ERROR")
    request = next(line for line in lines if line["message"] == "request")
    assert "secret detail of a bug" in failure["traceback"]
    assert (request["method"], request["path"], request["status"]) == ("POST", "/recommend", 500)
    assert request["duration_ms"] > 0

"""What every request passes through."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fakes import FakePublications, running, serving
from starlette.types import Message, Receive, Scope, Send

from service.app import create_app
from service.middleware import CancelWhenGone, ErrorForm, RequestLog, WholeBody
from service.settings import Settings

ERROR_FIELDS = {"code", "message", "field", "request_id"}


async def test_a_usable_request_id_is_kept(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        response = await client.get("/health/live", headers={"X-Request-ID": "order-7.a:b"})
    assert response.headers["X-Request-ID"] == "order-7.a:b"


@pytest.mark.parametrize("offered", ["", "two words", "x" * 129, "a\tb", "<script>"])
async def test_an_unusable_request_id_is_replaced(tmp_path: Path, offered: str) -> None:
    async with serving(tmp_path) as client:
        given = (await client.get("/health/live", headers={"X-Request-ID": offered})).headers["X-Request-ID"]
    assert len(given) == 32


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nowhere", 404, "not_found"), ("DELETE", "/recommend", 405, "method_not_allowed")],
)
async def test_what_no_route_takes_has_the_error_form(
    tmp_path: Path, method: str, path: str, status: int, code: str
) -> None:
    async with serving(tmp_path) as client:
        response = await client.request(method, path)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.json().keys() == ERROR_FIELDS
    assert response.json()["request_id"] == response.headers["X-Request-ID"]


async def test_a_wrong_method_is_told_the_right_one(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        assert (await client.delete("/recommend")).headers["Allow"] == "POST"


async def chunks(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield b" " * size


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_above_the_limit_is_refused(tmp_path: Path, announced: bool) -> None:
    async with serving(tmp_path, max_body_bytes=2048) as client:
        body = b" " * 2049 if announced else chunks(1000, 1000, 49)
        response = await client.post("/recommend", content=body)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
    assert response.json().keys() == ERROR_FIELDS


async def test_a_body_of_exactly_the_limit_is_read(tmp_path: Path) -> None:
    request = b'{"history": []}'
    async with serving(tmp_path, max_body_bytes=2048) as client:
        body = request + b" " * (2048 - len(request))
        response = await client.post("/recommend", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200


async def test_a_request_is_logged_with_status_and_duration(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "service.requests")
    async with running(create_app(Settings(store=tmp_path), FakePublications(tmp_path))) as client:
        await client.get("/items")
    (record,) = [record for record in caplog.records if record.name == "service.requests"]
    assert (record.method, record.path, record.status) == ("GET", "/items", 503)
    assert record.duration_ms >= 0


SCOPE: Scope = {"type": "http", "method": "POST", "path": "/", "headers": []}


def messages(*queued: Message) -> Receive:
    """A `receive` that yields these, then nothing for ever."""
    left = list(queued)

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return receive


async def drop(_: Message) -> None:
    pass


BODY = {"type": "http.request", "body": b"{}", "more_body": False}
GONE = {"type": "http.disconnect"}


async def test_work_stops_when_the_caller_has_left() -> None:
    stopped = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with asyncio.timeout(5):
        await WholeBody(CancelWhenGone(app), max_bytes=10)(SCOPE, messages(BODY, GONE), drop)
    assert stopped.is_set()


async def test_the_application_reads_the_body_and_sees_the_caller_leave() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await receive())
        await asyncio.sleep(0)
        seen.append(scope["type"])

    await WholeBody(CancelWhenGone(app), max_bytes=10)(SCOPE, messages(BODY), drop)
    assert seen == [BODY, "http"]


async def test_a_failure_of_the_application_is_not_swallowed() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await WholeBody(CancelWhenGone(app), max_bytes=10)(SCOPE, messages(BODY), drop)


async def test_a_caller_who_leaves_while_sending_starts_nothing() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("started")

    await WholeBody(app, max_bytes=10)(SCOPE, messages({**BODY, "more_body": True}, GONE), drop)


async def test_a_caller_who_left_is_logged_as_such(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    caplog.set_level(logging.INFO, "service.requests")
    stack = RequestLog(ErrorForm(WholeBody(CancelWhenGone(app), max_bytes=10)))
    await stack(SCOPE, messages(BODY, GONE), drop)
    assert caplog.records[-1].status == 499


async def test_an_answer_that_has_begun_is_broken_off_by_a_failure() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("too late")

    sent: list[Message] = []

    async def keep(message: Message) -> None:
        sent.append(message)

    with pytest.raises(ValueError, match="too late"):
        await ErrorForm(app)(SCOPE, messages(BODY), keep)
    assert len(sent) == 1


async def test_callers_share_no_request_id(tmp_path: Path) -> None:
    async with serving(tmp_path) as client:
        responses: list[httpx.Response] = await asyncio.gather(*(client.get("/health/live") for _ in range(20)))
    assert len({response.headers["X-Request-ID"] for response in responses}) == 20

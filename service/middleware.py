"""What every request passes through, from the outside in:

    RequestLog         gives it an id, and writes one line about it
    ErrorForm          turns what escapes into the one error form
    WholeBody          reads its body, up to a limit
    CancelWhenGone     stops working when the caller has left
    EncodedPath        matches routes against the path as it was sent

Plain ASGI; none of them knows a route.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLargeError, problem_of
from service.logs import REQUEST_ID

logger = logging.getLogger("service.requests")

REQUEST_ID_HEADER = "X-Request-ID"
CLIENT_CLOSED_REQUEST = 499
"""Logged, never sent: nobody is there to read it."""
_USABLE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class RequestLog:
    """Takes the caller's request id if it is usable, makes one if not, and returns it; logs status and duration."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        offered = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = offered if _USABLE_ID.fullmatch(offered) else uuid.uuid4().hex
        REQUEST_ID.set(request_id)
        status = CLIENT_CLOSED_REQUEST

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            facts = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "duration_ms": round(1000 * (time.perf_counter() - started), 2),
            }
            logger.info("request", extra=facts)


class ErrorForm:
    """Answers any exception in the one error form; once an answer has begun, all that is left is to break it off."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if has_begun:
                raise
            await problem_of(error).response()(scope, receive, send)


class WholeBody:
    """Reads the body before the application starts; above `max_bytes`, announced or not, BodyTooLargeError."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await self._read(scope, receive)
        if body is not None:  # else the caller left in the middle of it
            await self._app(scope, _replaying(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        announced = Headers(scope=scope).get("Content-Length", "")
        if announced.isdecimal() and int(announced) > self._max_bytes:
            raise self._too_large()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(f"the body is larger than {self._max_bytes} bytes: send less history")


class CancelWhenGone:
    """Cancels the application when the caller disconnects, so that nothing is computed for nobody.

    Needs WholeBody outside of it: what `receive` yields after the body is the disconnection.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body = (await receive())["body"]
        gone = asyncio.ensure_future(receive())

        async def wait_until_gone() -> Message:
            return await asyncio.shield(gone)

        work = asyncio.ensure_future(self._app(scope, _replaying(body, wait_until_gone), send))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
            if not work.cancelled():
                work.result()
        finally:
            gone.cancel()
            work.cancel()


class EncodedPath:
    """Lets routes see the path still percent-encoded: the id "a/image" is not the picture of "a"."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope.get("raw_path"):
            scope = {**scope, "path": scope["raw_path"].decode("latin-1")}
        await self._app(scope, receive, send)


def _replaying(body: bytes, afterwards: Receive) -> Receive:
    """A `receive` that yields `body` once, then whatever `afterwards` yields."""
    was_read = False

    async def receive() -> Message:
        nonlocal was_read
        if was_read:
            return await afterwards()
        was_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive

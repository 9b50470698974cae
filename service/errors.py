"""Every failure becomes one JSON form, here and nowhere else.

RecommenderError's family is mapped by the table below; what the framework raises is put into the same form; anything
else is a bug: its traceback is logged, and the caller learns the request id and nothing more.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from model.errors import InvalidInputError, NotReadyError, OverloadedError, RecommenderError
from service.logs import REQUEST_ID

logger = logging.getLogger(__name__)

MAX_FIELD_CHARS = 200
"""A field's name may be the caller's own invention; longer ones are cut."""


class ItemNotFoundError(RecommenderError):
    """The served catalog has no such item, or the item has no picture."""


class StaleCursorError(RecommenderError):
    """The cursor belongs to a catalog that is not served any more: start again."""


class BodyTooLargeError(RecommenderError):
    """The request body is above `max_body_bytes`."""


class AnswerTimeoutError(RecommenderError):
    """The ranking was not ready in time: come back later."""


STATUS: Mapping[type[RecommenderError], tuple[int, str]] = {
    InvalidInputError: (422, "invalid_request"),
    ItemNotFoundError: (404, "item_not_found"),
    StaleCursorError: (410, "stale_cursor"),
    BodyTooLargeError: (413, "body_too_large"),
    OverloadedError: (429, "overloaded"),
    NotReadyError: (503, "not_ready"),
    AnswerTimeoutError: (504, "timeout"),
}
"""Status and code of each error that is the caller's to act on."""


class ErrorBody(BaseModel):
    """The form of every answer that is not a success."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    code: str
    """What happened, for programs."""
    message: str
    """What happened and what to do about it, for people."""
    field: str | None = None
    """The part of the request that is to blame, such as `history.3`; null when it is none in particular."""
    request_id: str
    """Equals the X-Request-ID header; quote it when asking about this answer."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A failure in HTTP's terms."""

    status: int
    code: str
    message: str
    field: str | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def response(self) -> JSONResponse:
        body = ErrorBody(code=self.code, message=self.message, field=self.field, request_id=REQUEST_ID.get())
        return JSONResponse(body.model_dump(), self.status, dict(self.headers))


def problem_of(error: Exception) -> Problem:
    """The problem that an exception stands for; an unexpected one is logged with its traceback."""
    if isinstance(error, RequestValidationError):
        return _invalid_request(error)
    if isinstance(error, HTTPException):
        return _framework_problem(error)
    status_and_code = STATUS.get(type(error)) if isinstance(error, RecommenderError) else None
    if status_and_code is None:
        logger.error("unexpected failure", exc_info=error)
        return Problem(500, "internal_error", "an unexpected failure; the log has it under this request id")
    return Problem(
        *status_and_code,
        message=str(error),
        field=_printable(error.field) if isinstance(error, InvalidInputError) and error.field else None,
        headers={"Retry-After": str(math.ceil(error.retry_after_s))} if isinstance(error, OverloadedError) else {},
    )


def _invalid_request(error: RequestValidationError) -> Problem:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _unreadable_json()
    if first["type"] == "model_attributes_type" and first["loc"] == ("body",):
        return Problem(422, "invalid_request", "send a JSON object, as Content-Type: application/json", "body")
    _, *path = first["loc"]  # without "body", "query" or "path"
    field = _printable(".".join(str(part) for part in path)) or str(first["loc"][0])
    return Problem(422, "invalid_request", f"{field}: {first['msg']}", field)


def _framework_problem(error: HTTPException) -> Problem:
    if error.status_code == 400:  # only the body's parser says so: bytes that are not UTF-8, or nested without end
        return _unreadable_json()
    code = HTTPStatus(error.status_code).name.lower()
    messages = {404: "no such route: see /docs", 405: "this route does not take this method"}
    return Problem(error.status_code, code, messages.get(error.status_code, code), headers=error.headers or {})


def _unreadable_json() -> Problem:
    return Problem(422, "invalid_json", "the body is not JSON", "body")


def _printable(name: str) -> str:
    """A name that any JSON writer accepts: no lone surrogates, not too long."""
    return name.encode("utf-8", "replace").decode()[:MAX_FIELD_CHARS]

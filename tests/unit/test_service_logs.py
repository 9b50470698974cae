"""A log line is one JSON object."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from service.logs import REQUEST_ID, JsonFormatter


def formatted(message: str, *arguments: object, **attributes: Any) -> dict[str, Any]:
    record = logging.LogRecord(
        "some.logger", logging.INFO, __file__, 1, message, arguments, attributes.pop("exc", None)
    )
    vars(record).update(attributes)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    return json.loads(text)


def test_a_line_says_when_where_and_what() -> None:
    line = formatted("%d mugs", 3)
    assert line["message"] == "3 mugs"
    assert (line["level"], line["logger"]) == ("INFO", "some.logger")
    assert line["time"].endswith("+00:00")


def test_extra_facts_are_fields() -> None:
    assert formatted("request", status=200, duration_ms=1.5) | {"time": 0} == {
        "time": 0,
        "level": "INFO",
        "logger": "some.logger",
        "message": "request",
        "status": 200,
        "duration_ms": 1.5,
    }


def test_a_line_within_a_request_carries_its_id() -> None:
    token = REQUEST_ID.set("abc")
    try:
        assert formatted("hello")["request_id"] == "abc"
    finally:
        REQUEST_ID.reset(token)


def test_a_traceback_stays_on_its_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        assert "ValueError: two\nlines" in formatted("failed", exc=sys.exc_info())["traceback"]

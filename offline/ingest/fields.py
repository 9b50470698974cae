"""Single values of a row: ids and times. Raises BadRow with a reason that can be counted."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from typing import Any

MAX_ID_CHARACTERS = 256
MILLISECONDS_FROM = 100_000_000_000
"""A number from here on is milliseconds: as seconds it would be the year 5138, as milliseconds it is March 1973."""
_MAX_SECONDS = MILLISECONDS_FROM


class BadRow(Exception):  # noqa: N818 - it is caught row by row and counted, never an end
    """A row that cannot be used. `reason` groups, `detail` shows the value."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def parse_id(values: dict[str, Any], column: str) -> str:
    """A user or item id as text. Whole numbers are written without a fraction (12.0 is "12")."""
    value = values.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, bool | float | list | dict):
        raise BadRow(f"no {column}", shorten(value))
    text = str(value).strip()
    if not text:
        raise BadRow(f"no {column}", shorten(value))
    if len(text) > MAX_ID_CHARACTERS or not text.isprintable():
        raise BadRow(f"unusable {column}", f"{shorten(text)}: over {MAX_ID_CHARACTERS} or unprintable characters")
    return text


def parse_timestamp(values: dict[str, Any], column: str) -> int:
    """Seconds since 1970: from seconds, from milliseconds (see MILLISECONDS_FROM), or from ISO 8601 (UTC if unsaid)."""
    value = values.get(column)
    if value is None or value == "":
        raise BadRow(f"no {column}", shorten(value))
    seconds = _seconds(value)
    if seconds is None:
        raise BadRow(f"unusable {column}", f"{shorten(value)} is neither seconds, milliseconds nor ISO 8601")
    if not 0 <= seconds < _MAX_SECONDS:
        raise BadRow(f"unusable {column}", f"{shorten(value)} lies before 1970 or after the year 5138")
    return seconds


def shorten(value: object, width: int = 60) -> str:
    """`repr`, cut in the middle of a report line rather than filling it."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"


def _seconds(value: object) -> int | None:
    if isinstance(value, str):
        return _seconds_of_text(value.strip())
    if isinstance(value, datetime):
        return math.floor((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())
    if isinstance(value, date):
        return _seconds(datetime(value.year, value.month, value.day, tzinfo=UTC))
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return math.floor(value / 1000) if value >= MILLISECONDS_FROM else math.floor(value)


def _seconds_of_text(text: str) -> int | None:
    for read in (int, float):
        try:
            return _seconds(read(text))
        except ValueError:
            continue
    try:
        return _seconds(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return None

"""Ids and times, one value at a time."""

from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.ingest.fields import MILLISECONDS_FROM, BadRow, parse_id, parse_timestamp


@pytest.mark.parametrize(("value", "text"), [(12, "12"), (12.0, "12"), (" a b ", "a b"), ("012", "012"), ("é", "é")])
def test_ids_are_text(value: object, text: str) -> None:
    assert parse_id({"item_id": value}, "item_id") == text


@pytest.mark.parametrize("value", [None, "", "  ", True, 1.5, float("nan"), [], {}, "a\nb", "a\ud800", "x" * 257])
def test_unusable_ids_are_bad_rows(value: object) -> None:
    with pytest.raises(BadRow, match="item_id"):
        parse_id({"item_id": value}, "item_id")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0),
        (1_529_193_600, 1_529_193_600),
        (1_529_193_600.9, 1_529_193_600),
        ("1529193600", 1_529_193_600),
        (1_529_193_600_123, 1_529_193_600),
        ("1529193600123", 1_529_193_600),
        ("2018-06-17", 1_529_193_600),
        ("2018-06-17T00:00:00Z", 1_529_193_600),
        ("2018-06-17 02:00:00+02:00", 1_529_193_600),
        (datetime(2018, 6, 17), 1_529_193_600),
        (datetime(2018, 6, 17, 2, tzinfo=timezone(timedelta(hours=2))), 1_529_193_600),
        (date(2018, 6, 17), 1_529_193_600),
    ],
)
def test_times_become_seconds(value: object, seconds: int) -> None:
    assert parse_timestamp({"t": value}, "t") == seconds


@pytest.mark.parametrize("value", [None, "", "soon", -1, True, float("inf"), [], "9" * 5000, 10**30, "06 17, 2018"])
def test_unusable_times_are_bad_rows(value: object) -> None:
    with pytest.raises(BadRow, match="t"):
        parse_timestamp({"t": value}, "t")


@given(st.datetimes(datetime(1974, 1, 1), datetime(2100, 1, 1)))
def test_seconds_milliseconds_and_text_of_one_moment_agree(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC, microsecond=0)
    seconds = int(moment.timestamp())
    assert seconds < MILLISECONDS_FROM <= seconds * 1000
    assert {parse_timestamp({"t": v}, "t") for v in (seconds, seconds * 1000, moment.isoformat())} == {seconds}

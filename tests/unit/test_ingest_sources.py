"""Rows out of files, good and bad."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.errors import InvalidInputError
from offline.ingest.fields import BadRow, parse_id, parse_timestamp
from offline.ingest.sources import MAX_LINE_BYTES, RowFile

COLUMNS = ("user_id", "item_id")
ROWS = [{"user_id": "u1", "item_id": "a"}, {"user_id": "u2", "item_id": "b"}, {"user_id": "u3", "item_id": "c"}]
JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b"user_id,item_id\nu1,a\nu2,b\nu3,c\n"


def read(path: Path, content: bytes | None = None) -> tuple[list[dict[str, Any]], RowFile]:
    if content is not None:
        path.write_bytes(content)
    file = RowFile(path, COLUMNS, "interactions")
    return list(file.parsed(lambda row: {c: parse_id(row, c) for c in COLUMNS})), file


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSON_LINES),
        ("a.json.gz", gzip.compress(JSON_LINES)),
        ("a.json", gzip.compress(JSON_LINES)),
        ("a.jsonl", b"\xef\xbb\xbf" + JSON_LINES.replace(b"\n", b"\r\n\r\n")),
        ("a.ndjson", JSON_LINES.replace(b'"', b"'")),
        ("a.csv", CSV),
        ("a.csv", b"\xef\xbb\xbf" + CSV.replace(b"\n", b"\r\n")),
        ("a.csv.gz", gzip.compress(CSV)),
        ("a.tsv", CSV.replace(b",", b"\t")),
    ],
)
def test_the_same_rows_come_out_of_every_text_format(tmp_path: Path, name: str, content: bytes) -> None:
    assert read(tmp_path / name, content)[0] == ROWS


def test_parquet_rows_come_out_with_times_of_any_resolution(tmp_path: Path) -> None:
    moment = datetime(2018, 6, 17, tzinfo=UTC)
    times = pa.array([moment] * 2, pa.timestamp("ns", tz="Europe/Paris"))
    pq.write_table(pa.table({"user_id": [1, 2], "item_id": ["a", "b"], "t": times}), tmp_path / "a.parquet")
    file = RowFile(tmp_path / "a.parquet", COLUMNS, "interactions")
    rows = list(file.parsed(lambda row: (parse_id(row, "user_id"), parse_timestamp(row, "t"))))
    assert rows == [("1", 1_529_193_600), ("2", 1_529_193_600)]


def test_bad_rows_are_counted_and_named_by_file_and_line(tmp_path: Path) -> None:
    content = JSON_LINES + b'{"user_id": "u4"}\nnot json\n\xff\xfe\n'
    rows, file = read(tmp_path / "a.jsonl", content)
    assert rows == ROWS
    assert file.rows == 6
    assert {entry["reason"]: entry["examples"][0].split(" ")[0] for entry in file.bad.as_json()} == {
        "no item_id": "a.jsonl:4:",
        "not a JSON object": "a.jsonl:5:",
        "not UTF-8": "a.jsonl:6:",
    }


def test_csv_rows_of_the_wrong_width_or_encoding_are_bad(tmp_path: Path) -> None:
    rows, file = read(tmp_path / "a.csv", CSV + b"u4\nu5,e,extra\n\xe9,f\n")
    assert rows == ROWS
    assert file.bad.counts == {"wrong number of fields": 2, "not UTF-8": 1}


def test_a_line_over_the_limit_is_one_bad_row(tmp_path: Path) -> None:
    rows, file = read(tmp_path / "a.jsonl", b"x" * (MAX_LINE_BYTES + 500) + b"\n" + JSON_LINES)
    assert rows == ROWS
    assert file.bad.counts == {"line too long": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json.gz", JSON_LINES, "not gzip"),
        ("a.json.gz", gzip.compress(JSON_LINES * 500)[:-20], "truncated gzip"),
        ("a.csv.gz", gzip.compress(CSV * 500)[:-20], "truncated gzip"),
        ("a.parquet", JSON_LINES, "not a whole Parquet"),
        ("a.csv", b"user,item\n1,2\n", "lacks the columns user_id, item_id"),
        ("a.csv", b"", "lacks the columns"),
        ("a.csv", b"user_id,item_id\n", "no rows"),
        ("a.jsonl", b"\n\n", "no rows"),
        ("a.jsonl", b"<html>\n<body>\n</html>\n", "3 of 3 rows are unusable"),
        ("a.jsonl", json.dumps(ROWS).encode(), "not a JSON object"),
        ("a.xlsx", b"PK", "cannot tell the format"),
    ],
)
def test_a_file_that_is_not_what_it_claims_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message) as refusal:
        read(tmp_path / name, content)
    assert name in str(refusal.value)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"absent\.jsonl"):
        read(tmp_path / "absent.jsonl")


def test_a_long_file_of_nothing_but_bad_rows_is_given_up_early(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"nonsense\n" * 100_000)
    file = RowFile(tmp_path / "a.jsonl", COLUMNS, "interactions")
    with pytest.raises(InvalidInputError, match="1,000 of 1,000"):
        list(file.parsed(dict))
    assert file.rows == 1_000


def test_a_parser_says_why_a_row_is_bad(tmp_path: Path) -> None:
    def refuse_second(row: dict[str, Any]) -> str:
        if row["user_id"] == "u2":
            raise BadRow("not liked", "u2")
        return str(row["user_id"])

    (tmp_path / "a.jsonl").write_bytes(JSON_LINES)
    file = RowFile(tmp_path / "a.jsonl", COLUMNS, "interactions")
    assert list(file.parsed(refuse_second)) == ["u1", "u3"]
    assert file.bad.as_json() == [{"reason": "not liked", "count": 1, "examples": ["a.jsonl:2: not liked u2"]}]

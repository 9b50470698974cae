"""Rows out of JSON lines, CSV and Parquet, one at a time. Knows no meaning of a column.

The name says the format (`.jsonl`, `.json`, `.ndjson`, `.csv`, `.tsv`, each with or without `.gz`, and `.parquet`); a
file that turns out to be something else is an error, single bad rows are counted.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from model.errors import InvalidInputError
from offline.ingest.fields import BadRow, shorten
from offline.ingest.reasons import Reasons

Values = dict[str, Any]
T = TypeVar("T")

MAX_LINE_BYTES = 16 * 1024 * 1024
_HOPELESS_AFTER = 1_000  # rows, all of them bad: no need to read on
_GZIP_MAGIC = b"\x1f\x8b"
_JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
_CSV_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class RowFile:
    """One input file, read once, with the count of its rows and of its bad ones."""

    def __init__(self, path: Path, columns: tuple[str, ...], meaning: str) -> None:
        """`columns` must be there; `meaning` says in errors what the file was taken for ("Amazon 2018 reviews")."""
        self.path = path
        self.columns = columns
        self.meaning = meaning
        self.rows = 0
        self.bad = Reasons()

    def parsed(self, parse: Callable[[Values], T]) -> Iterator[T]:
        """Every row that `parse` takes; one for which it raises BadRow is counted under its file and line.

        Raises InvalidInputError when the file is missing, of another format, empty, or more than half of it is bad.
        """
        for line, row in tqdm(self._rows(), desc=f"reading {self.path.name}", unit=" rows", disable=None, leave=False):
            self.rows += 1
            try:
                if isinstance(row, BadRow):
                    raise row
                yield parse(row)
            except BadRow as bad:
                self.bad.add(bad.reason, f"{self.path.name}:{line}: {bad.reason} {bad.detail}".rstrip())
                if self.rows == self.bad.total == _HOPELESS_AFTER:
                    break
        self._check_share_of_bad_rows()

    def _check_share_of_bad_rows(self) -> None:
        if not self.rows:
            raise InvalidInputError(f"{self.path} has no rows; expected {self.meaning}", str(self.path))
        if self.bad.total * 2 > self.rows:
            worst = self.bad.as_json()[0]
            raise InvalidInputError(
                f"{self.path} was read as {self.meaning} (with {', '.join(self.columns)}), but {self.bad.total:,} of "
                f"{self.rows:,} rows are unusable, most often: {worst['reason']} (first: {worst['examples'][0]}); "
                "is it the right file and format?",
                str(self.path),
            )

    def _rows(self) -> Iterator[tuple[int, Values | BadRow]]:
        if not self.path.is_file():
            raise InvalidInputError(f"{self.path} is not a file; expected {self.meaning}", str(self.path))
        suffix = Path(self.path.name.lower().removesuffix(".gz")).suffix
        if suffix == ".parquet":
            return _parquet_rows(self.path, self.columns)
        if suffix in _CSV_DELIMITERS:
            return _csv_rows(self.path, self.columns, _CSV_DELIMITERS[suffix])
        if suffix in _JSON_SUFFIXES:
            return _json_rows(self.path)
        known = ", ".join([*_JSON_SUFFIXES, *_CSV_DELIMITERS])
        raise InvalidInputError(
            f"{self.path}: cannot tell the format from the name; expected {known} (each also .gz) or .parquet",
            str(self.path),
        )


def _json_rows(path: Path) -> Iterator[tuple[int, Values | BadRow]]:
    with _open(path) as file:
        line, text = 0, _read_line(path, file)
        while text:
            line += 1
            whole = text.endswith(b"\n") or len(text) < MAX_LINE_BYTES
            while text and not whole and not text.endswith(b"\n"):
                text = _read_line(path, file)
            if not whole:
                yield line, BadRow("line too long", f"over {MAX_LINE_BYTES:,} bytes")
            elif text.strip():
                yield line, _json_row(text)
            text = _read_line(path, file)


def _read_line(path: Path, file: IO[bytes]) -> bytes:
    with _damage_named(path):
        return file.readline(MAX_LINE_BYTES)


def _json_row(line: bytes) -> Values | BadRow:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        return BadRow("not UTF-8", shorten(line))
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = _python_literal(text)
    return row if isinstance(row, dict) else BadRow("not a JSON object", shorten(text.strip()))


def _python_literal(text: str) -> object:
    """Older Amazon dumps hold Python dictionaries, single-quoted, where later ones hold JSON."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unknown escapes such as '\d' in titles
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def _csv_rows(path: Path, columns: tuple[str, ...], delimiter: str) -> Iterator[tuple[int, Values | BadRow]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    with _open(path) as binary, io.TextIOWrapper(binary, "utf-8-sig", "surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        header = [name.strip() for name in _next_record(path, reader) or []]
        _require_columns(path, columns, header)
        while (record := _next_record(path, reader)) is not None:
            if record:
                yield reader.line_num, _csv_row(header, record)


def _next_record(path: Path, reader: Iterator[list[str]]) -> list[str] | None:
    with _damage_named(path):
        try:
            return next(reader, None)
        except csv.Error as error:
            raise InvalidInputError(f"{path} is not CSV: {error}", str(path)) from None


def _csv_row(header: list[str], record: list[str]) -> Values | BadRow:
    if len(record) != len(header):
        return BadRow("wrong number of fields", f"{len(record)} where the header has {len(header)}")
    if any("\udc80" <= character <= "\udcff" for field in record if not field.isascii() for character in field):
        return BadRow("not UTF-8", shorten(record))
    return dict(zip(header, record, strict=True))


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, Values | BadRow]]:
    try:
        with pq.ParquetFile(path) as file:
            _require_columns(path, columns, file.schema_arrow.names)
            line = 0
            for batch in file.iter_batches(batch_size=4096):
                for row in _plain_times(pa.Table.from_batches([batch])).to_pylist():
                    line += 1
                    yield line, row
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidInputError(f"{path} is not a whole Parquet file: {error}", str(path)) from None


def _plain_times(table: Any) -> Any:
    """Timestamps as naive UTC microseconds: Python's datetime holds no nanoseconds."""
    for index, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            utc = table.column(index).cast(pa.timestamp("us", tz=field.type.tz), safe=False).cast(pa.timestamp("us"))
            table = table.set_column(index, field.name, utc)
    return table


def _require_columns(path: Path, columns: tuple[str, ...], found: list[str]) -> None:
    missing = [column for column in columns if column not in found]
    if missing:
        raise InvalidInputError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            f"found: {shorten(', '.join(found), 200)}",
            str(path),
        )


def _open(path: Path) -> IO[bytes]:
    """The file's bytes, decompressed where they are gzip. A name that says gzip must hold gzip."""
    with path.open("rb") as file:
        start = file.read(2)
    if start == _GZIP_MAGIC:
        return io.BufferedReader(gzip.open(path, "rb"), 1 << 20)
    if path.suffix.lower() == ".gz":
        raise InvalidInputError(f"{path} is named .gz, but it is not gzip: it starts with {start!r}", str(path))
    return path.open("rb")


class _damage_named:  # noqa: N801 - reads as a clause after `with`
    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
            raise InvalidInputError(
                f"{self._path} is damaged or truncated gzip ({error}); fetch it again", str(self._path)
            ) from None

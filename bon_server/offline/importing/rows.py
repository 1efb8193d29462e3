"""The rows of a file, JSON lines or Parquet, in order. Parquet is known by its first bytes; its rows become JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bon_server.core.errors import LogError
from bon_server.offline.importing.line import BadImportLine, Fields

MAX_LINE_BYTES = 64 << 20
PARQUET_BATCH_ROWS = 64
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PARQUET_MAGIC = b"PAR1"


class ImportRow(NamedTuple):
    """One row, unread."""

    number: int
    """Of the line or row in its file, from 1."""
    text: bytes
    """JSON without line feed; a line that is too long comes cut, still too long."""
    read_bytes: int
    """Of the file, so far; about that for Parquet."""
    problem: str | None = None
    """Why the file's own format does not give this row; None: it does."""


def is_parquet(path: Path) -> bool:
    """Whether the file begins as Parquet files do."""
    with path.open("rb") as file:
        return file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC


def rows(path: Path) -> Iterator[ImportRow]:
    """The rows of a file; blank lines are none. Raises OSError, and `LogError` for damaged Parquet."""
    if is_parquet(path):
        yield from _parquet_rows(path)
    else:
        with path.open("rb") as file:
            yield from _lines(file)


def parse(text: bytes) -> Fields:
    """The JSON object of a row. Raises `BadImportLine`."""
    if len(text) > MAX_LINE_BYTES:
        raise BadImportLine(f"longer than {MAX_LINE_BYTES} bytes")
    try:
        fields = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise BadImportLine(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise BadImportLine(f"not JSON at character {error.pos}: {error.msg}") from None
    except BadImportLine:
        raise
    except (ValueError, RecursionError) as error:
        raise BadImportLine(f"not JSON that can be read ({type(error).__name__})") from None
    if not isinstance(fields, dict):
        raise BadImportLine("not a JSON object")
    return fields


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> Fields:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise BadImportLine("a key is there twice")
    return fields


def _lines(file: BinaryIO) -> Iterator[ImportRow]:
    number = 0
    while text := file.readline(MAX_LINE_BYTES + 2):
        number += 1
        rest = text
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES)
        text = text.rstrip(b"\r\n")
        if number == 1:
            text = text.removeprefix(_BYTE_ORDER_MARK)
        if text.strip():
            yield ImportRow(number, text, file.tell())


def _parquet_rows(path: Path) -> Iterator[ImportRow]:
    size_bytes = path.stat().st_size
    try:
        with pq.ParquetFile(path) as file:
            _check_names(path, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(PARQUET_BATCH_ROWS):
                for position in range(batch.num_rows):
                    number += 1
                    text, problem = _to_json(batch.slice(position, 1))
                    yield ImportRow(number, text, size_bytes * number // file.metadata.num_rows, problem)
    except pa.ArrowException as error:
        raise LogError(f"{path} is not Parquet that can be read ({type(error).__name__})") from error


def _check_names(path: Path, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise LogError(f"{path} has two columns of one name")


def _to_json(row: pa.RecordBatch) -> tuple[bytes, str | None]:
    try:
        # Python's encoder keeps NaN and infinities apart from null; times and bytes are of no use to any format.
        return json.dumps(row.to_pylist()[0], ensure_ascii=False, default=repr).encode(), None
    except (ValueError, RecursionError) as error:  # strings in Parquet need not be UTF-8
        return b"", f"not a row that can be read ({type(error).__name__})"

"""Segments: sealed records in Parquet files that any engine reads as they lie.

    LOG/segments/date=YYYY-MM-DD/writer=ID/FIRST-LAST.parquet
    LOG/feedback/date=YYYY-MM-DD/writer=ID/FIRST-LAST.parquet       the same for feedback, whose ordinals are its own

`date` is that of `created_at` in UTC; FIRST and LAST are the ordinals of the sealing, so that sealing the same records
again makes the same names. A file is made of row groups of rising ordinals; within a row group the rows are sorted by
prompt, which puts alike texts next to each other for the compression. Pages carry checksums, and row groups statistics.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from bon_server.core.errors import LogError
from bon_server.log.segments.columns import SCHEMA
from bon_server.system.files import make_folder, new_file, sha256_of

FOLDER = "segments"
FEEDBACK_FOLDER = "feedback"
ROW_GROUP_RECORDS = 4_096
ROW_GROUP_BYTES = 8 << 20
"""Of Arrow data: what a reader holds at a time."""
_SORT = [("prompt_hash", "ascending"), ("ordinal", "ascending")]
_NAME = re.compile(r"(\w+)/date=(\d{4}-\d\d-\d\d)/writer=([A-Za-z0-9._-]+)/(\d{12,19})-(\d{12,19})\.parquet")


class SegmentKind(NamedTuple):
    """What a kind of segments has in common."""

    folder: str
    """Of the log folder."""
    schema: pa.Schema
    sort: list[tuple[str, str]]
    """Of the rows within a row group."""


RECORDS = SegmentKind(FOLDER, SCHEMA, _SORT)


class SegmentName(NamedTuple):
    """What the name of a segment says."""

    date: str
    """YYYY-MM-DD, UTC."""
    writer: str
    first_ordinal: int
    last_ordinal: int


def file_of(place: SegmentName, folder: str = FOLDER) -> str:
    """Relative to the log folder."""
    name = f"{place.first_ordinal:012d}-{place.last_ordinal:012d}.parquet"
    return f"{folder}/date={place.date}/writer={place.writer}/{name}"


def place_of(file: str, folder: str = FOLDER) -> SegmentName | None:
    """Inverse of `file_of`; None: not a segment's name."""
    match = _NAME.fullmatch(file)
    if match is None or match[1] != folder:
        return None
    return SegmentName(match[2], match[3], int(match[4]), int(match[5]))


def writer_of(file: str) -> str:
    """Name of the writer of a segment."""
    return file.split("/writer=")[1].partition("/")[0]


def listed(directory: Path, folder: str = FOLDER) -> Iterator[str]:
    """The segments in the folder, by their names, relative to the log folder, sorted."""
    found = (path.relative_to(directory).as_posix() for path in directory.glob(f"{folder}/*/*/*.parquet"))
    yield from sorted(file for file in found if place_of(file, folder) is not None)


@dataclass(slots=True)
class _Growing:
    """One date's file while it is written."""

    file: str
    parquet: Any
    sort: list[tuple[str, str]]
    batches: list[Any] = field(default_factory=list)
    waiting_rows: int = 0
    waiting_bytes: int = 0
    rows: int = 0

    def add(self, batch: Any) -> None:
        self.batches.append(batch)
        self.waiting_rows += batch.num_rows
        self.waiting_bytes += batch.nbytes
        if self.waiting_rows >= ROW_GROUP_RECORDS or self.waiting_bytes >= ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self.batches:
            self.parquet.write_table(pa.Table.from_batches(self.batches).sort_by(self.sort))
            self.rows += self.waiting_rows
            self.batches, self.waiting_rows, self.waiting_bytes = [], 0, 0


class SegmentsWriter:
    """Writes the files of one sealing, one for each date. In a `with` block: at its good end they get their names."""

    def __init__(
        self, directory: Path, writer: str, first_ordinal: int, last_ordinal: int, table: SegmentKind = RECORDS
    ) -> None:
        self._directory = directory
        self._table = table
        self._writer = writer
        self._range = (first_ordinal, last_ordinal)
        self._growing: dict[str, _Growing] = {}
        self._files = ExitStack()

    def __enter__(self) -> SegmentsWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        with self._files:
            if error[1] is not None:
                self._abandon()
                raise error[1]  # else the files would not know and take their names
            try:
                for growing in self._growing.values():
                    growing.flush()
                    growing.parquet.close()
            except BaseException:
                self._abandon()
                raise

    def _abandon(self) -> None:
        """Lets the Parquet writers go while their files are still open: they would write to them when collected."""
        for growing in self._growing.values():
            with suppress(pa.ArrowException, OSError):
                growing.parquet.close()

    def add(self, date: str, batch: pa.RecordBatch) -> None:
        """Rows of one date; ordinals rise from call to call. Raises OSError when there is no room."""
        if date not in self._growing:
            self._growing[date] = self._start(
                file_of(SegmentName(date, self._writer, *self._range), self._table.folder)
            )
        self._growing[date].add(batch)

    def rows(self) -> dict[str, int]:
        """Files, relative to the log folder, with their rows; complete after the `with` block."""
        return {growing.file: growing.rows for growing in self._growing.values()}

    def _start(self, file: str) -> _Growing:
        path = self._directory / file
        make_folder(path.parent)
        raw = self._files.enter_context(new_file(path, holds_same))
        return _Growing(file, parquet_writer(raw, self._table.schema), self._table.sort)


def holds_same(there: Path, new: Path) -> bool:
    """Whether a file that has a segment's name is that segment: the same bytes or, from before an upgrade, rows."""
    if sha256_of(there) == sha256_of(new):
        return True
    try:
        rows, wanted = (pq.read_table(path, partitioning=None).sort_by("ordinal") for path in (there, new))
    except (pa.ArrowException, OSError, KeyError):
        return False
    shared = [name for name in wanted.column_names if name in rows.column_names]
    return bool(rows.select(shared).equals(wanted.select(shared)))


def parquet_writer(file: BinaryIO, schema: pa.Schema) -> Any:
    """A `pyarrow.parquet.ParquetWriter` with the settings of every segment."""
    return pq.ParquetWriter(
        file, schema, compression="zstd", write_page_checksum=True, write_page_index=True, version="2.6"
    )


@contextmanager
def naming(path: Path, part: str = "") -> Iterator[None]:
    """Turns what Parquet and Arrow raise for damage into a `LogError` that names the file. part: where in the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise LogError(f"{path} is missing") from error
    except (pa.ArrowException, msgspec.MsgspecError, OSError, ValueError, LookupError, OverflowError) as error:
        # Their messages may quote what the file holds.
        raise LogError(f"{path}{part} is damaged or no segment: it cannot be read ({type(error).__name__})") from error


def footer_sha256(path: Path) -> str:
    """Digest (hexadecimal) of a file's schema and statistics, which unlike its pages have no checksums.

    A changed letter in the name of a column would otherwise read as a column that is not there.

    Raises OSError or ValueError for what is no Parquet file.
    """
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return hashlib.sha256(file.read()).hexdigest()


def open_parquet(path: Path, size_bytes: int | None = None, footer: str | None = None) -> Any:
    """A `pyarrow.parquet.ParquetFile` that checks its pages; threads may share it. Raises `LogError`.

    size_bytes, footer: length and `footer_sha256` as in the catalog.
    """
    with naming(path):
        size = path.stat().st_size
        if size_bytes is not None and size != size_bytes:
            raise LogError(f"{path} is damaged: {size} bytes long, not {size_bytes}")
        if footer is not None and footer_sha256(path) != footer:
            raise LogError(f"{path} is damaged: its footer has changed")
        # Buffers read ahead are shared by all calls of `read_row_group`, which then could not run at the same time.
        parquet = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
        if "ordinal" not in parquet.schema_arrow.names:
            raise LogError(f"{path} is no segment: it has no column 'ordinal'")
        return parquet


def row_group_range(parquet: Any, group: int, column: str) -> tuple[Any, Any] | None:
    """Lowest and highest value of a top-level column in a row group, as its statistics have it; None: not known."""
    columns = parquet.metadata.row_group(group)
    for index in range(columns.num_columns):
        if columns.column(index).path_in_schema == column:
            statistics = columns.column(index).statistics
            known = statistics is not None and statistics.has_min_max
            return (statistics.min, statistics.max) if known else None
    return None

"""What must be true of every row of records, wherever it is, and of all records of a writer together.

`record_problems` looks at one record, `SeenRows` at one beside those before it. `segment_rows` goes through a segment's
rows and the statistics of its row groups, `spool_records` through the spool: whether each row fits where it is and the
segment where it will be.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

import apsw
import msgspec
import pyarrow as pa

from bon_server.core.errors import LogError
from bon_server.core.types import CandidateStatus, Outcome
from bon_server.log.read.reader import LogReader
from bon_server.log.record import Record, decode
from bon_server.log.segments.columns import from_batch, leaves, to_batch
from bon_server.log.segments.files import naming, open_parquet, row_group_range
from bon_server.log.segments.reader import SegmentView
from bon_server.log.spool.database import StoredRow, row_of, unpack

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FOR_GOOD = 1 << 62
Found = Iterator[tuple[str, str]]
"""Kinds and details of problems."""


def record_problems(record: Record) -> Found:
    """What is wrong with a record in itself."""
    scored: set[int] = set()
    for place, candidate in enumerate(record.candidates):
        if candidate.index != place:
            yield "candidates", f"candidate {place} has the index {candidate.index}"
        rewards = [candidate.reward or 0.0, *candidate.rewards.values()]
        is_scored = candidate.status is CandidateStatus.SCORED
        if is_scored != (candidate.reward is not None) or not all(map(math.isfinite, rewards)):
            yield "reward", f"candidate {place} is {candidate.status} and must have {_reward_of(is_scored)}"
        elif is_scored:
            scored.add(place)
    answered = record.outcome in (Outcome.OK, Outcome.PARTIAL) and record.budget is None
    if len(record.candidates) > record.n or (answered and len(record.candidates) < record.n):
        yield "candidates", f"{len(record.candidates)} candidates; {record.n} were asked for"
    if record.selected_index is not None and record.selected_index not in scored:
        yield "selection", f"candidate {record.selected_index} was selected and is not there, or not scored"


def _reward_of(is_scored: bool) -> str:
    return "a finite reward" if is_scored else "no reward"


class SeenRows:
    """Ordinals and ids of the rows so far, in a private temporary database: they may not fit into memory.

    names: of what makes an id, for the report.
    """

    def __init__(self, names: str) -> None:
        self._names = names
        self._database = apsw.Connection("")
        self._database.execute(
            "CREATE TABLE ordinals (writer TEXT, ordinal INTEGER, PRIMARY KEY (writer, ordinal)) WITHOUT ROWID;"
            "CREATE TABLE ids (id BLOB PRIMARY KEY, ordinal INTEGER, until_us INTEGER) WITHOUT ROWID; BEGIN"
        )

    def close(self) -> None:
        """Removes the database."""
        self._database.close()

    def problems(
        self, writer: str, ordinal: int, row_id: tuple[str, ...], created_at: datetime, until_us: int | None
    ) -> Found:
        """What a row has in common with earlier ones of its writer and must not.

        until_us: when its id may be used again, microseconds since 1970; None: never.
        """
        if not self._insert("INSERT OR IGNORE INTO ordinals VALUES (?, ?)", writer, ordinal):
            yield "ordinal", "this ordinal was met before"
        digest = hashlib.sha256("\0".join((writer, *row_id)).encode()).digest()
        until = _FOR_GOOD if until_us is None else until_us
        if self._insert("INSERT OR IGNORE INTO ids VALUES (?, ?, ?)", digest, ordinal, until):
            return
        earlier, its_until = self._database.execute("SELECT ordinal, until_us FROM ids WHERE id = ?", (digest,)).get
        if (created_at - _EPOCH) // timedelta(microseconds=1) < its_until:
            yield "duplicate_id", f"{self._names} are those of row {earlier}"
        self._database.execute("UPDATE ids SET ordinal = ?, until_us = ? WHERE id = ?", (ordinal, until, digest))

    def _insert(self, statement: str, *values: str | int | bytes) -> bool:
        self._database.execute(statement, values)
        return self._database.changes() == 1


_WITH_STATISTICS = ("ordinal", "created_at", "request_id")
One = TypeVar("One")


def to_records(batch: pa.RecordBatch) -> list[tuple[int, Record]]:
    """Ordinals and records of a batch of a segment."""
    return from_batch(batch, Record)


@dataclass(frozen=True, slots=True)
class RowGroup(Generic[One]):
    """What was found in one row group, or of a file that has none."""

    rows: list[tuple[int, One | LogError]] = field(default_factory=list)
    """Ordinals, each with what the row holds or why it holds nothing."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Kinds and details."""


def segment_rows(
    part: SegmentView, schema: pa.Schema, convert: Callable[[pa.RecordBatch], list[tuple[int, One]]]
) -> Iterator[RowGroup[One]]:
    """The row groups of a segment, in the file's order; `convert` makes of rows what they hold."""
    try:
        parquet = open_parquet(part.path)
    except LogError as error:
        yield RowGroup(problems=[("segment_unreadable", str(error))])
        return
    with closing(parquet):
        for group in range(parquet.metadata.num_row_groups):
            try:
                with naming(part.path, f": row group {group}"):
                    table = parquet.read_row_group(group, columns=leaves(schema))
                    yield RowGroup(_rows(part, table, convert), list(_statistics(parquet, group, table)))
            except LogError as error:
                yield RowGroup(problems=[("segment_unreadable", str(error))])


def _rows(
    part: SegmentView, table: Any, convert: Callable[[pa.RecordBatch], list[tuple[int, One]]]
) -> list[tuple[int, One | LogError]]:
    rows: list[tuple[int, One | LogError]] = []
    for batch in table.combine_chunks().to_batches():
        try:
            rows += convert(batch)
        except (msgspec.MsgspecError, ValueError):
            for place in range(batch.num_rows):
                row = _row(part, batch.slice(place, 1), convert)
                rows.append(row)
    return rows


def _row(
    part: SegmentView, row: Any, convert: Callable[[pa.RecordBatch], list[tuple[int, One]]]
) -> tuple[int, One | LogError]:
    try:
        return convert(row)[0]
    except (msgspec.MsgspecError, ValueError) as error:
        ordinal = row.column("ordinal").to_pylist()[0] or 0
        return ordinal, LogError(f"{part.path}: row {ordinal} cannot be read ({type(error).__name__})")


def _statistics(parquet: Any, group: int, table: Any) -> Iterator[tuple[str, str]]:
    for column in _WITH_STATISTICS:
        said = row_group_range(parquet, group, column)
        values = [value for value in table[column].to_pylist() if value is not None]
        if said is None or not values:
            yield "statistics", f"row group {group} has none of {column!r}"
        elif tuple(map(_comparable, said)) != (_comparable(min(values)), _comparable(max(values))):
            yield "statistics", f"row group {group}: those of {column!r} are not those of its rows"


def _comparable(value: Any) -> Any:
    return value.timestamp() if isinstance(value, datetime) else value


_PAGE = "SELECT ordinal, sha256, record, principal, request_id, attempt, kind, outcome FROM records"


def spool_records(reader: LogReader) -> Iterator[tuple[int, Record | LogError, str | None]]:
    """Ordinals with what each row holds, and what does not fit, if anything. Raises `LogError` where reading ends."""
    for stored, copies in _spool_rows(reader):
        try:
            record = unpack(stored, decode, reader.spool_file)
        except LogError as error:
            yield stored.ordinal, error, None
            continue
        yield stored.ordinal, record, _unfit(record, copies)


def _unfit(record: Record, copies: tuple[object, ...]) -> str | None:
    try:
        to_batch([record])
        fits = tuple(row_of(record)[:5]) == copies
    except ValueError as error:
        return str(error)
    return None if fits else "its columns are not those of its record"


def _spool_rows(reader: LogReader) -> Iterator[tuple[StoredRow, tuple[object, ...]]]:
    after = 0
    while after < reader.last_ordinal:
        page = f"{_PAGE} WHERE ordinal > ? AND ordinal <= ? ORDER BY ordinal LIMIT 64"
        rows = reader.database(page, after, reader.last_ordinal)
        for row in rows:
            yield StoredRow(*row[:3]), row[3:]
        after = rows[-1][0] if rows else reader.last_ordinal

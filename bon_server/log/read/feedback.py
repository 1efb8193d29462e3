"""The feedback of a log, for any process, also while the server writes and seals.

Sealed feedback is indexed once, when it is first asked for, in a private temporary database that spills to disk.
Joining it to a million records then costs two look-ups a record and one pass over the feedback, in bounded memory. What
is sealed later is found in the same read transaction as what is not sealed yet: nothing is missed or met twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from heapq import merge
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import apsw

from bon_server.core.errors import LogError
from bon_server.log import catalog
from bon_server.log.catalog import Segment, Version, versions
from bon_server.log.feedback import Feedback, decode, encode, unpack
from bon_server.log.published import described
from bon_server.log.read.reader import refuse_damage
from bon_server.log.record import Record
from bon_server.log.segments.feedback_columns import FEEDBACK, FEEDBACK_SCHEMA, from_batch
from bon_server.log.segments.files import listed, naming, open_parquet, place_of
from bon_server.log.segments.reader import SegmentView, part_of
from bon_server.log.segments.where import EVERYTHING
from bon_server.log.spool.database import SPOOL_NAME, open_for_reading

PAGE_ROWS = 256
_LAST = (1 << 63) - 1
_TABLE_EXISTS = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'feedback'"
_INDEX = """
CREATE TABLE feedback (
    writer TEXT, ordinal INTEGER, principal TEXT, request_id TEXT, attempt INTEGER, feedback BLOB,
    PRIMARY KEY (writer, ordinal)
) WITHOUT ROWID;
CREATE INDEX by_request ON feedback (principal, request_id, attempt);
"""


class FeedbackReader:
    """One log folder.

    on_damage: called with each segment or row group that cannot be read, which is left out when it returns.

    Raises `LogError` as `LogReader` does.
    """

    def __init__(self, directory: Path, on_damage: Callable[[LogError], None] = refuse_damage) -> None:
        self._directory = directory
        self._file = directory / SPOOL_NAME
        self._on_damage = on_damage
        # A folder of segments alone, and the log of an earlier version, have no table.
        self._spool = open_for_reading(self._file) if self._file.exists() else None
        self._has_table = False
        self._own_writer = ""
        if self._spool is not None:
            with self._reading():
                self._has_table = bool(self._spool.execute(_TABLE_EXISTS).get)
                self._own_writer = (catalog.writer_id(self._spool) or "") if self._has_table else ""
        self._others = [part for part in self._listed() if part[0] != self._own_writer]
        self._index: apsw.Connection | None = None
        self._indexed = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the files."""
        for database in (self._spool, self._index):
            if database is not None:
                database.close()

    def count(self) -> int:
        """How many observations there are."""
        rows, made = self._look("SELECT count(*) FROM feedback", after=0)
        own = sum(segment.rows for segment in made) + (rows[0][0] if rows else 0)
        return int(own) + sum(_rows(part.path) for _, part in self._others)

    def all(self) -> Iterator[Feedback]:
        """In the order of the log."""
        index = self._start()
        writers = {self._own_writer, *(writer for writer, _ in self._others)}
        for writer in sorted(writers):
            through = 0
            while through < _LAST:
                after, rows = through, list[Any]()
                if writer == self._own_writer:
                    rows = self._page(after)
                through = rows[-1][0] if rows else _LAST
                between = "SELECT ordinal, feedback FROM feedback WHERE writer = ? AND ordinal > ? AND ordinal <= ?"
                sealed = index.execute(f"{between} ORDER BY ordinal", (writer, after, through))
                unsealed = [(row[0], unpack(*row)) for row in rows]
                decoded = ((ordinal, decode(blob)) for ordinal, blob in sealed)
                yield from (one for _, one in merge(decoded, unsealed, key=lambda pair: pair[0]))

    def of(self, record: Record) -> list[Feedback]:
        """What was observed about a record, in commit order."""
        index = self._start()
        statement = "SELECT ordinal, sha256, feedback FROM feedback WHERE principal = ? AND request_id = ?"
        rows, made = self._look(
            f"{statement} ORDER BY ordinal", record.principal, record.request_id, after=self._indexed
        )
        self._add(made)
        key = (record.principal, record.request_id, record.attempt)
        by_request = "SELECT feedback FROM feedback WHERE principal = ? AND request_id = ? AND attempt = ?"
        sealed = [decode(row[0]) for row in index.execute(f"{by_request} ORDER BY writer, ordinal", key)]
        return sealed + [one for row in rows if (one := unpack(*row)).attempt == record.attempt]

    def _page(self, after: int) -> list[Any]:
        """Rows of the spool after an ordinal; what was sealed by then is in the index."""
        page = f"SELECT ordinal, sha256, feedback FROM feedback WHERE ordinal > ? ORDER BY ordinal LIMIT {PAGE_ROWS}"
        rows, made = self._look(page, after, after=self._indexed)
        self._add(made)
        return rows

    def _look(self, statement: str, *values: int | str, after: int) -> tuple[list[Any], list[Segment]]:
        """Rows of the spool, and the segments of sealings after an ordinal, of one transaction."""
        if self._spool is None or not self._has_table:
            return [], []
        rows: list[Any] = []
        made: list[Segment] = []
        with self._reading(), self._spool:
            rows = self._spool.execute(statement, values).fetchall()
            made = catalog.segments(self._spool, after, catalog.FEEDBACK)
        return rows, made

    def _start(self) -> apsw.Connection:
        """The index, made when it is first needed, with the segments of other writers."""
        if self._index is None:
            self._index = apsw.Connection("")
            self._index.execute(_INDEX)
            for writer, part in self._others:
                self._insert(writer, part)
        return self._index

    def _add(self, made: Sequence[Segment]) -> None:
        for segment in made:
            self._insert(self._own_writer, part_of(self._directory, segment, self._look_again))
        self._indexed = max([self._indexed, *(segment.last_ordinal for segment in made)])

    def _look_again(self, file: str) -> list[Version] | None:
        assert self._spool is not None
        with self._reading():
            return versions(self._spool, file)

    def _insert(self, writer: str, part: SegmentView) -> None:
        index = self._index
        assert index is not None
        for batch in part.batches(FEEDBACK_SCHEMA, EVERYTHING, self._on_damage):
            try:
                with naming(part.path):
                    rows = from_batch(batch)
            except LogError as error:
                self._on_damage(error)
                continue
            with index:
                index.executemany(
                    "INSERT INTO feedback VALUES (?, ?, ?, ?, ?, ?)",
                    ((writer, at, one.principal, one.request_id, one.attempt, encode(one)) for at, one in rows),
                )

    def _listed(self) -> Iterator[tuple[str, SegmentView]]:
        for file in listed(self._directory, FEEDBACK.folder):
            place = place_of(file, FEEDBACK.folder)
            if place is not None:
                part = SegmentView(self._directory / file, place.date, place.first_ordinal, place.last_ordinal)
                yield place.writer, self._as_described(part, file)

    def _as_described(self, part: SegmentView, file: str) -> SegmentView:
        """With what was put beside a published segment."""
        try:
            segment = described(self._directory, file)
        except LogError as error:
            self._on_damage(error)
            return part
        if segment is None:
            return part
        return replace(part, size_bytes=segment.bytes, footer_sha256=segment.footer_sha256)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except apsw.Error as error:
            raise LogError(f"{self._file} cannot be read: {error}") from error


def _rows(path: Path) -> int:
    with closing(open_parquet(path)) as parquet:
        return int(parquet.metadata.num_rows)

"""The log as a stream, for any process, also while the server writes and seals.

A reader sees a prefix of the log: what was committed when it was opened, each record once. The catalog in the spool
decides what is in the log: rows of the spool, and the segments listed there in the same read transaction. The
spool is read a page of rows at a time in short transactions, so that memory stays bounded and the writer can go on
recycling its write-ahead log, however slow the consumer is. Each of them also looks for segments sealed since: rows
ahead of the reader that were sealed meanwhile are read from there, rows behind it are not read again.

The order of a log is (writer, ordinal). A folder mostly has one writer. Segments of others, and all of a folder that
was copied without its spool, are taken as they are listed, for there is no catalog of them; files that the folder's
own writer did not enter are left alone: they are what a crash left of a sealing whose rows are still in the spool.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import apsw
import msgspec

from bon_server.core.errors import LogError
from bon_server.log import catalog
from bon_server.log.catalog import Segment, Version, versions
from bon_server.log.published import described, removed
from bon_server.log.record import Record, decode
from bon_server.log.scores.joined import AddedScores
from bon_server.log.segments.columns import SCHEMA, conform, prune, to_batch
from bon_server.log.segments.files import FEEDBACK_FOLDER, listed, open_parquet, place_of, writer_of
from bon_server.log.segments.reader import SegmentView, part_of, read_ahead
from bon_server.log.segments.where import EVERYTHING as EVERYTHING
from bon_server.log.segments.where import Where as Where
from bon_server.log.spool.database import SPOOL_NAME, StoredRow, open_for_reading, unpack, unpack_fields
from bon_server.system.files import sha256_of

Fields = TypeVar("Fields")
PAGE_ROWS = 64


class Position(NamedTuple):
    """Where a record is in the order of the log."""

    writer: int
    """Index into `LogReader.writers`."""
    ordinal: int


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file of a log, as far as it is read."""

    file: Path
    rows: int
    sha256: str
    """Of a spool: of its records (the `record` column) in ordinal order."""
    last_ordinal: int
    bytes: int
    """Of a spool: of these records."""


def refuse_damage(error: LogError) -> None:
    """The default of `on_damage`: reading ends with the error."""
    raise error


class LogReader:
    """One log folder.

    on_damage: called with each segment, row group or row that cannot be read, which is left out when it returns.
    only: read these segments and nothing else, see `snapshot.open_snapshot`.

    Raises `LogError` when there is no log, and while reading, with file and row, for damage.
    """

    def __init__(
        self,
        directory: Path,
        on_damage: Callable[[LogError], None] = refuse_damage,
        only: Sequence[Segment] | None = None,
    ) -> None:
        self.directory = directory
        self.spool_file = directory / SPOOL_NAME
        self._on_damage = on_damage
        others = list(listed(directory)) if only is None else []
        sealed = bool(others) or any(listed(directory, FEEDBACK_FOLDER))
        alone = only is not None or (sealed and not self.spool_file.exists())
        self._spool = None if alone else open_for_reading(self.spool_file)
        self.segments: list[Segment] = list(only or ())
        """Those of the catalog, or those that alone are read."""
        self.described: dict[str, Segment] = {}
        """Others that were published, by file, as the descriptions beside them say."""
        self.removed: list[str] = []
        """Segments, also of feedback, that were published and are no longer here."""
        self.unsealed = 0
        """Records in the spool."""
        self.last_ordinal: int = 0
        """Of the newest record of the folder's own writer that belongs to the prefix read; 0: it has none."""
        self.plan: tuple[int, int] | None = None
        """First and last ordinal of a sealing that was under way."""
        self.own_writer = self._open_catalog()
        """Name of the writer whose spool is here; empty: it has none yet, or the folder was copied without it."""
        self._parts: dict[str, list[SegmentView]] = {}
        if only is None:
            self._parts[self.own_writer] = self._own_parts(self.segments)
        for one in only or ():
            self._parts.setdefault(writer_of(one.file), []).append(part_of(directory, one))
        for file in others:
            self._add_listed(file)
        self.writers: tuple[str, ...] = tuple(sorted(self._parts))
        """Names of those who wrote it, in the order of the log."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the files."""
        if self._spool is not None:
            self._spool.close()

    @property
    def parts(self) -> list[SegmentView]:
        """The segments of the prefix, in the order of the log."""
        return [part for writer in self.writers for part in self._parts[writer]]

    def parts_by_writer(self) -> Iterator[tuple[str, SegmentView]]:
        """As `parts`, each with the name of its writer."""
        return ((writer, part) for writer in self.writers for part in self._parts[writer])

    def records(self, where: Where = EVERYTHING) -> Iterator[Record]:
        """Records in the order of the log, with added scores among the rewards of their candidates."""
        added = AddedScores(self.directory, self._on_damage)
        for position, record in self.fields(Record, where):
            yield added.joined(self.writers[position.writer], record) if added.names else record

    def fields(self, some_fields: type[Fields], where: Where = EVERYTHING) -> Iterator[tuple[Position, Fields]]:
        """Positions with only those fields of each record that a dataclass or Struct names, in the order of the log.

        Of segments only the columns of these fields are read; in the spool the rest is skipped over.
        """
        for index, writer in enumerate(self.writers):
            for ordinal, one in self._in_order(writer, some_fields, where):
                yield Position(index, ordinal), one

    def batches(self, columns: Collection[str] | None = None, where: Where = EVERYTHING) -> Iterator[Any]:
        """Arrow record batches, each row of the log once, with `columns` (None: all; see `columns.prune`).

        The fast way: a row group at a time, as it lies in its file, so that rows are not in the order of the log;
        `ordinal` tells where each belongs. Raises `ConfigError` for an unknown column.
        """
        return (batch for _, batch in self.batches_by_writer(columns, where))

    def batches_by_writer(
        self, columns: Collection[str] | None = None, where: Where = EVERYTHING
    ) -> Iterator[tuple[str, Any]]:
        """As `batches`, each with the name of its writer."""
        schema = SCHEMA if columns is None else prune(columns)
        for writer in self.writers:
            for batch in read_ahead(self._parts[writer], schema, where, self._on_damage):
                yield writer, conform(batch, schema)
        for batch in self.unsealed_batches(columns, where):
            yield self.own_writer, batch

    def unsealed_batches(self, columns: Collection[str] | None = None, where: Where = EVERYTHING) -> Iterator[Any]:
        """As `batches`, of the rows that are in none of `parts`."""
        schema = SCHEMA if columns is None else prune(columns)
        for _, rows, parts in self._pages(where):
            records = [record for _, record in self._unpacked(rows, Record, where)]
            if records:
                yield to_batch(records, schema)
            for batch in read_ahead(parts, schema, where, self._on_damage):
                yield conform(batch, schema)

    def sources(self) -> list[LogFile]:
        """The files of the prefix, in the order of the log; reads the spool once, and segments not in this catalog."""
        return self.segment_sources() + self.unsealed_sources()

    def unsealed_sources(self) -> list[LogFile]:
        """The files of the rows that are in none of `parts`; the spool also when it has no rows and there are none."""
        digest = hashlib.sha256()
        rows = size = 0
        late: list[SegmentView] = []
        for _, page, parts in self._pages(EVERYTHING):
            rows += len(page)
            late += parts
            for row in page:
                digest.update(row.record)
                size += len(row.record)
        sources = [_source(part, None) for part in late]
        if rows or not (late or self.parts or self._spool is None):
            sources.append(LogFile(self.spool_file, rows, digest.hexdigest(), self.last_ordinal, size))
        return sources

    def segment_sources(self) -> list[LogFile]:
        """The segments of the prefix, in the order of the log; reads those not in its catalog."""
        known = {self.directory / one.file: one for one in (*self.segments, *self.described.values())}
        return [_source(part, known.get(part.path)) for part in self.parts]

    def _open_catalog(self) -> str:
        """Reads what is in the prefix, in one transaction; returns the name of the folder's own writer."""
        spool = self._spool
        if spool is None or not self.database("SELECT count(*) FROM sqlite_schema")[0][0]:
            return ""  # copied without its spool, or its writer was killed while making it
        with self._reading(), spool:
            self.segments = catalog.segments(spool)
            self.removed = removed(spool)
            self.unsealed, last = self.database("SELECT count(*), coalesce(max(ordinal), 0) FROM records")[0]
            self.last_ordinal = max([last, *(one.last_ordinal for one in self.segments)])
            own = catalog.writer_id(spool)
            self.plan = None if own is None else catalog.planned(spool)
        return own or ""

    def _own_parts(self, segments: Iterable[Segment]) -> list[SegmentView]:
        return [part_of(self.directory, one, self._look_again) for one in segments]

    def _look_again(self, file: str) -> list[Version] | None:
        """How a segment may look now; None: it was removed on purpose, with its rows."""
        assert self._spool is not None
        with self._reading():
            return versions(self._spool, file)

    def _add_listed(self, file: str) -> None:
        place = place_of(file)
        if place is not None and place.writer != self.own_writer:
            part = SegmentView(self.directory / file, place.date, place.first_ordinal, place.last_ordinal)
            try:
                segment = described(self.directory, file)
            except LogError as error:
                self._on_damage(error)
                segment = None
            if segment is not None:
                part = replace(part, size_bytes=segment.bytes, footer_sha256=segment.footer_sha256)
                self.described[file] = segment
            self._parts.setdefault(place.writer, []).append(part)

    def _in_order(self, writer: str, some_fields: type[Fields], where: Where) -> Iterator[tuple[int, Fields]]:
        """Merges a writer's segments and, for the folder's own, its spool. A segment is opened when its turn comes."""
        number = itertools.count()
        heap: list[tuple[int, int, Fields | None, Iterator[tuple[int, Fields]]]] = []

        def wait(first: int, rows: Iterator[tuple[int, Fields]], one: Fields | None = None) -> None:
            heappush(heap, (first, next(number), one, rows))

        def until(through: float) -> Iterator[tuple[int, Fields]]:
            while heap and heap[0][0] <= through:
                ordinal, _, one, rows = heappop(heap)
                if one is not None:
                    yield ordinal, one
                following = next(rows, None)
                if following is not None:
                    wait(following[0], rows, following[1])

        for part in self._parts[writer]:
            wait(part.first_ordinal, part.rows(some_fields, where, self._on_damage))
        if writer == self.own_writer:
            for through, rows, parts in self._pages(where):
                for part in parts:
                    wait(part.first_ordinal, part.rows(some_fields, where, self._on_damage))
                if rows:
                    wait(rows[0].ordinal, self._unpacked(rows, some_fields, where))
                yield from until(through)
        yield from until(float("inf"))

    def _unpacked(self, rows: list[StoredRow], some_fields: type[Fields], where: Where) -> Iterator[tuple[int, Fields]]:
        decoder = msgspec.msgpack.Decoder(some_fields)
        for row in rows:
            if where.ordinals is not None and row.ordinal not in where.ordinals:
                continue
            try:
                one: Any = (
                    unpack(row, decode, self.spool_file)
                    if some_fields is Record
                    else unpack_fields(row, decoder.decode, self.spool_file)
                )
            except LogError as error:
                self._on_damage(error)
                continue
            yield row.ordinal, one

    def _pages(self, where: Where) -> Iterator[tuple[int, list[StoredRow], list[SegmentView]]]:
        """Pages of the spool: up to which ordinal, its rows, and segments sealed since that have rows ahead."""
        conditions, values = where.sql()
        statement = (
            f"SELECT ordinal, sha256, record FROM records WHERE ordinal > ? AND ordinal <= ? AND {conditions}"
            f" ORDER BY ordinal LIMIT {PAGE_ROWS}"
        )
        spool, after = self._spool, where.after_ordinal
        known = max((one.last_ordinal for one in self.segments), default=0)
        while spool is not None and after < self.last_ordinal:
            with self._reading(after), spool:
                rows = [StoredRow(*row) for row in self.database(statement, after, self.last_ordinal, *values)]
                made = catalog.segments(spool, after=known)
            known = max([known, *(one.last_ordinal for one in made)])
            through = rows[-1].ordinal if len(rows) == PAGE_ROWS else self.last_ordinal
            parts = self._own_parts(one for one in made if one.first_ordinal <= self.last_ordinal)
            bounded = [replace(part, after_ordinal=after, through_ordinal=self.last_ordinal) for part in parts]
            yield through, rows, bounded
            after = through

    def database(self, statement: str, *values: str | int) -> list[tuple[Any, ...]]:
        """Rows of a query on the spool; none when there is no spool. Raises `LogError` when it cannot be read."""
        if self._spool is None:
            return []
        with self._reading():
            return self._spool.execute(statement, values).fetchall()

    @contextmanager
    def _reading(self, after: int | None = None) -> Iterator[None]:
        try:
            yield
        except apsw.Error as error:
            place = "" if after is None else f" after row {after}"
            raise LogError(f"{self.spool_file} cannot be read{place}: {error}") from error


def _source(part: SegmentView, segment: Segment | None) -> LogFile:
    if segment is not None:
        return LogFile(part.path, segment.rows, segment.sha256, segment.last_ordinal, segment.bytes)
    with closing(open_parquet(part.path)) as parquet:
        size = part.path.stat().st_size
        return LogFile(part.path, parquet.metadata.num_rows, sha256_of(part.path), part.last_ordinal, size)

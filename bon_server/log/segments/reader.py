"""Reading segments: a row group at a time, only the columns that are asked for, only the row groups that can matter.

Several row groups are read at a time, each on a thread (`read_ahead`), because Arrow's own threads within one stay
mostly idle: nearly all of a record is in two columns, the texts and the token ids of its candidates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import pyarrow as pa

from bon_server.core.errors import LogError
from bon_server.log.catalog import Segment, Version
from bon_server.log.record import Record
from bon_server.log.segments.columns import SCHEMA, from_batch, leaves, schema_for
from bon_server.log.segments.files import naming, open_parquet, row_group_range
from bon_server.log.segments.where import Ordinals, Where

Fields = TypeVar("Fields")
MOST_AHEAD = 4
"""Row groups that are read, or have been and wait, beside the one that is being used."""
AHEAD_BYTES = 128 << 20
"""Of these row groups together, uncompressed, unless it is a single one: it holds whole records, however large."""


class Read(NamedTuple):
    """A row group that may be read."""

    size_bytes: int
    """Uncompressed, with all columns."""
    batch: Callable[[], Any]
    """Reads the wanted rows; None: there are none. On any thread. Raises `LogError`."""


@dataclass(frozen=True, slots=True)
class SegmentView:
    """A segment, as far as a reader reads it."""

    path: Path
    date: str
    first_ordinal: int
    last_ordinal: int
    size_bytes: int | None = None
    """As in the catalog; None: not in this log's."""
    footer_sha256: str | None = None
    """As in the catalog; None: not in this log's."""
    after_ordinal: int = 0
    through_ordinal: int | None = None
    """Only rows in (after, through]; None: to its end."""
    look_again: Callable[[], list[Version] | None] | None = None
    """Says how the file may look by now, when it is not as in the catalog; None: it was removed with its rows."""

    def batches(self, schema: pa.Schema, where: Where, on_damage: Callable[[LogError], None]) -> Iterator[Any]:
        """Its rows, a row group a batch, with those of the columns that it has, in the file's order.

        on_damage: told what cannot be read; raises the error, or returns to have it left out.
        """
        for read in self.reads(schema, where):
            try:
                batch = read.batch()
            except LogError as error:
                on_damage(error)
                continue
            if batch is not None:
                yield batch

    def reads(self, schema: pa.Schema, where: Where) -> Iterator[Read]:
        """One for each of its row groups, in the file's order; each keeps the file open."""
        if not where.may_hold(self.date):
            return
        try:
            parquet = self._open()
        except LogError as error:
            yield Read(0, partial(_raise, error))
            return
        if parquet is not None:
            for group in range(parquet.num_row_groups):
                size_bytes = parquet.metadata.row_group(group).total_byte_size
                yield Read(size_bytes, partial(self._batch, parquet, group, schema, where))

    def rows(
        self, some_fields: type[Fields], where: Where, on_damage: Callable[[LogError], None]
    ) -> Iterator[tuple[int, Fields]]:
        """Ordinals with some fields of its records, in ordinal order."""
        schema = SCHEMA if some_fields is Record else schema_for(some_fields)
        for batch in self.batches(schema, where, on_damage):
            try:
                with naming(self.path):
                    rows = from_batch(batch, some_fields)
            except LogError as error:
                on_damage(error)
                continue
            yield from rows

    def _open(self) -> Any:
        """The file, also when it was rewritten since this reading began; None: it was removed on purpose."""
        try:
            return open_parquet(self.path, self.size_bytes, self.footer_sha256)
        except LogError:
            versions = [] if self.look_again is None else self.look_again()
            if versions is None:
                return None
            for version in versions:
                with suppress(LogError):
                    return open_parquet(self.path, version.bytes, version.footer_sha256)
            raise

    def _batch(self, parquet: Any, group: int, schema: pa.Schema, where: Where) -> Any:
        """The wanted rows of a row group; None: there are none."""
        with naming(self.path, f": row group {group}"):
            bounds = row_group_range(parquet, group, "ordinal")
            low, high = bounds or (self.first_ordinal, self.last_ordinal)
        after = max(self.after_ordinal, where.after_ordinal)
        if high <= after or (self.through_ordinal is not None and low > self.through_ordinal):
            return None
        if where.ordinals is not None and not len(where.ordinals.between(low, high)):
            return None
        whole = low > after and (self.through_ordinal is None or high <= self.through_ordinal)
        with naming(self.path, f": row group {group} (rows {low} to {high})"):
            mask = None
            if not whole or where.columns() or where.ordinals is not None:
                deciding = parquet.read_row_group(group, columns=["ordinal", *where.columns()])
                mask = where.mask(deciding, after, self.through_ordinal)
                if not any(chunk.true_count for chunk in mask.chunks):
                    return None
            table = parquet.read_row_group(group, columns=leaves(schema))
            table = table if mask is None else table.filter(mask)
            return table.combine_chunks().to_batches()[0] if table.num_rows else None


def read_ahead(
    parts: Iterable[SegmentView], schema: pa.Schema, where: Where, on_damage: Callable[[LogError], None]
) -> Iterator[Any]:
    """The batches of parts one after the other, as `SegmentView.batches` has them, the next ones being read meanwhile.

    Threads are gone when it ends or is closed. `on_damage` and `SegmentView.look_again` are called on the consumer's
    thread.
    """
    reads = (read for part in parts for read in part.reads(schema, where))
    most = min(MOST_AHEAD, pa.cpu_count())
    started: deque[tuple[int, Future[Any]]] = deque()
    following = next(reads, None)
    with ThreadPoolExecutor(most, thread_name_prefix="log-reader") as threads:

        def start() -> None:
            nonlocal following
            while following is not None and _fits(following, [size_bytes for size_bytes, _ in started], most):
                started.append((following.size_bytes, threads.submit(following.batch)))
                following = next(reads, None)

        start()
        while started:
            batch = None
            try:
                batch = started.popleft()[1].result()
            except LogError as error:
                on_damage(error)
            start()
            if batch is not None:
                yield batch


def _fits(read: Read, ahead_bytes: Sequence[int], most: int) -> bool:
    """Beside those that are ahead."""
    return not ahead_bytes or (len(ahead_bytes) < most and sum(ahead_bytes) + read.size_bytes <= AHEAD_BYTES)


def part_of(
    directory: Path, segment: Segment, look_again: Callable[[str], list[Version] | None] | None = None
) -> SegmentView:
    """A segment of the catalog. look_again: `SegmentView.look_again` by file."""
    date = segment.file.split("date=")[1][:10]
    return SegmentView(
        directory / segment.file,
        date,
        segment.first_ordinal,
        segment.last_ordinal,
        segment.bytes,
        segment.footer_sha256,
        look_again=None if look_again is None else partial(look_again, segment.file),
    )


def read_one(directory: Path, segments: Sequence[Segment], ordinal: int, some_fields: type[Fields]) -> Fields:
    """Some fields of the record of an ordinal that one of the segments holds.

    Raises `LogError` when none does, or it is damaged.
    """
    only = Where(ordinals=Ordinals([ordinal]))
    for segment in segments:
        for _, record in part_of(directory, segment).rows(some_fields, only, _raise):
            return record
    raise LogError(f"row {ordinal} is in none of the segments {', '.join(one.file for one in segments) or '(none)'}")


def _raise(error: LogError) -> NoReturn:
    raise error

"""Sealing: committed records and feedback leave the spool for segments.

    plan        the next ordinals, up to `seal_bytes` of rows, are noted in the catalog
    write       one file for each date: temporary name, fsync, its name if that is free, fsync of the folder; then read
                back. A file that has the name and the same rows is what a crash left; any other is left alone, and the
                log is closed
    remember    ids, so that retries still find their answers
    complete    one transaction puts the files into the catalog and drops the rows

Commits go on meanwhile and wait for the short transactions only. Whatever fails before the last of them, a full disk
say, leaves the spool as it was; whatever was written by then is written again, the same, by the next sealing. Rows that
are damaged stay in the spool, where readers and `bon log verify` report them.

Here are, in this order: the steps that both streams share; feedback, in this process; records, whose rows another
process makes (`process.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import apsw

from bon_server.core.errors import LogError
from bon_server.log import catalog
from bon_server.log.catalog import RECORDS, Sealed, SealedFeedback, Segment, StreamTables
from bon_server.log.feedback import Feedback, said, unpack
from bon_server.log.seal.process import SealedPage, seal_page, sealing_process
from bon_server.log.segments.feedback_columns import FEEDBACK, to_batch
from bon_server.log.segments.files import SegmentsWriter, footer_sha256, naming, open_parquet
from bon_server.log.spool.database import StoredRow
from bon_server.log.spool.pieces import change_in_pieces, forget_overdue, pieces
from bon_server.log.spool.spool import Spool
from bon_server.system.files import sha256_of


def last_ordinal(reading: apsw.Connection, stream: StreamTables) -> int:
    """Of what is in the spool; 0: nothing is."""
    last: int = reading.execute(f"SELECT coalesce(max(ordinal), 0) FROM {stream.rows}").get
    return last


def waiting_bytes(reading: apsw.Connection, stream: StreamTables) -> int:
    """Of what the next sealings take."""
    statement = f"SELECT coalesce(sum(length({stream.content})), 0) FROM {stream.rows} WHERE ordinal > ?"
    size: int = reading.execute(statement, (catalog.sealed_through(reading, stream),)).get
    return size


def plan_next(
    spool: Spool, reading: apsw.Connection, until: int, seal_bytes: int, stream: StreamTables
) -> tuple[int, int] | None:
    """The range to seal next: that of an interrupted sealing first. None: nothing up to `until` is left to do."""
    interrupted = catalog.planned(reading, stream)
    if interrupted is not None:
        return interrupted
    ordinals: list[int] = []
    size = 0
    rows = f"SELECT ordinal, length({stream.content}) FROM {stream.rows} WHERE ordinal > ? AND ordinal <= ?"
    after = catalog.sealed_through(reading, stream)
    for ordinal, length in reading.execute(f"{rows} ORDER BY ordinal", (after, until)):
        ordinals.append(ordinal)
        size += length
        if size >= seal_bytes:
            break
    if not ordinals:
        return None
    first, last = ordinals[0], ordinals[-1]
    spool.transaction(lambda database: catalog.plan(database, first, last, stream))
    return first, last


def read_back(directory: Path, rows: Mapping[str, int], first_last: tuple[int, int], until_us: int) -> list[Segment]:
    """Entries in the catalog of the files of a sealing, each with so many rows.

    When one does not read back, none stays: their rows are in the spool, and the next sealing needs the names. Raises
    `LogError`.
    """
    try:
        return [catalog_entry(directory, file, count, first_last, until_us) for file, count in rows.items()]
    except LogError:
        for file in rows:
            (directory / file).unlink(missing_ok=True)
        raise


def catalog_entry(directory: Path, file: str, rows: int, first_last: tuple[int, int], until_us: int) -> Segment:
    """A file's entry in the catalog. It is read back first: its rows are about to leave the spool.

    Raises `LogError` when it does not hold so many rows.
    """
    path = directory / file
    parquet = open_parquet(path)
    with naming(path), closing(parquet):
        # On this thread alone: whoever waits for a commit needs the other processors.
        groups = range(parquet.num_row_groups)
        read = sum(parquet.read_row_group(group, use_threads=False).num_rows for group in groups)
    if read != rows:
        raise LogError(f"{path} was written with {rows} rows and has {read}")
    return Segment(file, *first_last, rows, path.stat().st_size, sha256_of(path), footer_sha256(path), until_us)


_FEEDBACK_PAGE = (
    "SELECT ordinal, sha256, feedback FROM feedback WHERE ordinal > ? AND ordinal <= ? ORDER BY ordinal LIMIT 256"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Observations = list[tuple[int, Feedback]]


@dataclass(slots=True)
class FeedbackSealed:
    """What a sealing did."""

    rows: int = 0
    files: list[str] = field(default_factory=list)
    """Made, relative to the log folder."""
    left: int = 0
    """Damaged ones, which stay in the spool."""


def seal_feedback(spool: Spool, seal_bytes: int, replay_window_s: float) -> FeedbackSealed:
    """Seals the feedback that is in the spool now; blocks. Parameters and errors are those of `seal`."""
    result = FeedbackSealed()
    with spool.reading() as reading:
        writer = catalog.writer_id(reading) or ""
        until = last_ordinal(reading, catalog.FEEDBACK)
        while (first_last := plan_next(spool, reading, until, seal_bytes, catalog.FEEDBACK)) is not None:
            _seal_feedback_range(spool, reading, writer, first_last, replay_window_s, result)
    return result


def feedback_waiting(reading: apsw.Connection) -> tuple[int, int | None]:
    """Bytes of the feedback that the next sealings take, and when the oldest came (microseconds since 1970)."""
    after, size = catalog.sealed_through(reading, catalog.FEEDBACK), waiting_bytes(reading, catalog.FEEDBACK)
    oldest = "SELECT ordinal, sha256, feedback FROM feedback WHERE ordinal > ? ORDER BY ordinal LIMIT 1"
    row = reading.execute(oldest, (after,)).fetchone()
    if row is None:
        return size, None
    try:
        return size, (unpack(*row).created_at - _EPOCH) // timedelta(microseconds=1)
    except LogError:
        return size, 0  # damaged: a sealing passes it by


def _seal_feedback_range(
    spool: Spool,
    reading: apsw.Connection,
    writer: str,
    first_last: tuple[int, int],
    replay_window_s: float,
    result: FeedbackSealed,
) -> None:
    until_us = spool.clock.latest_us() + round(replay_window_s * 1e6)
    left: list[int] = []
    with SegmentsWriter(spool.directory, writer, *first_last, FEEDBACK) as files:
        for page in _feedback_pages(reading, first_last, left):
            for date, some in _by_date(page).items():
                files.add(date, to_batch(some))
            if replay_window_s > 0:
                spool.transaction(partial(catalog.remember_feedback, observations=_sealed(page, until_us)))
    made = read_back(spool.directory, files.rows(), first_last, until_us)
    spool.transaction(lambda database: catalog.complete(database, made, left, catalog.FEEDBACK))
    result.rows += sum(files.rows().values())
    result.files += files.rows()
    result.left += len(left)


def _feedback_pages(reading: apsw.Connection, first_last: tuple[int, int], left: list[int]) -> Iterator[Observations]:
    """The feedback of a range, in short transactions; ordinals of damaged rows are added to `left`."""
    after, last = first_last[0] - 1, first_last[1]
    while rows := _feedback_rows(reading, after, last):
        found: Observations = []
        for ordinal, sha256, blob in rows:
            try:
                found.append((ordinal, unpack(ordinal, sha256, blob)))
            except LogError:
                left.append(ordinal)
        yield found
        after = rows[-1][0]


def _feedback_rows(reading: apsw.Connection, after: int, last: int) -> list[Any]:
    return reading.execute(_FEEDBACK_PAGE, (after, last)).fetchall()


def _by_date(observations: Observations) -> dict[str, Observations]:
    dates: dict[str, Observations] = defaultdict(list)
    for ordinal, one in observations:
        dates[one.created_at.astimezone(UTC).date().isoformat()].append((ordinal, one))
    return dates


def _sealed(observations: Observations, until_us: int) -> Sequence[SealedFeedback]:
    return [
        SealedFeedback(one.principal, one.feedback_id, said(one), ordinal, until_us) for ordinal, one in observations
    ]


_PAGE_ROWS = 16
"""Few, because a record may have thousands of token ids in each of many candidates."""
_PAGE = (
    "SELECT ordinal, sha256, record FROM records WHERE ordinal > ? AND ordinal <= ?"
    f" ORDER BY ordinal LIMIT {_PAGE_ROWS}"
)
MakePage = Callable[[Sequence[StoredRow], int], SealedPage]
"""`process.seal_page`, or something that has it done elsewhere."""


@dataclass(slots=True)
class SealResult:
    """What a sealing did."""

    records: int = 0
    """Sealed."""
    files: list[str] = field(default_factory=list)
    """Made, relative to the log folder."""
    left: int = 0
    """Records of the range, and observations, that could not be sealed; they stay in the spool."""
    feedback: int = 0
    """Observations sealed."""


def seal(spool: Spool, seal_bytes: int, replay_window_s: float, make_page: MakePage = seal_page) -> SealResult:
    """Seals what is in the spool now; blocks. One sealing at a time.

    Commits by other threads of this process are slow meanwhile, see `seal_beside_commits`.

    seal_bytes: of records in one sealing. replay_window_s: how long sealed records answer retries; imported ones always
    do, so that a file can be imported twice.

    Raises `LogError` and OSError when files cannot be written, and the `RequestError`s of `Spool.transaction` and
    `Spool.reading`; then what was not completed is still in the spool.
    """
    result = SealResult()
    with spool.reading() as reading:
        writer = catalog.writer_id(reading) or ""
        until = last_ordinal(reading, RECORDS)
        while (first_last := plan_next(spool, reading, until, seal_bytes, RECORDS)) is not None:
            _seal_range(spool, reading, writer, first_last, replay_window_s, make_page, result)
    feedback = seal_feedback(spool, seal_bytes, replay_window_s)
    result.feedback = feedback.rows
    result.files += feedback.files
    result.left += feedback.left
    spool.transaction(spool.clock.save)
    forget_overdue(spool)
    return result


def seal_beside_commits(spool: Spool, seal_bytes: int, replay_window_s: float) -> SealResult:
    """As `seal`, in a way that commits by other threads hardly notice: rows are made in a process of its own.

    For its length that costs a start of Python and some 80 MB.
    """
    with sealing_process() as make_page:
        return seal(spool, seal_bytes, replay_window_s, make_page)


def waiting(reading: apsw.Connection) -> tuple[int, int | None]:
    """Bytes of what the next sealings take, feedback included, and when its oldest began (microseconds since 1970)."""
    after = catalog.sealed_through(reading)
    oldest = "SELECT created_at_us FROM records WHERE ordinal > ? ORDER BY ordinal LIMIT 1"
    feedback_size, feedback_oldest = feedback_waiting(reading)
    times = [time for time in (reading.execute(oldest, (after,)).get, feedback_oldest) if time is not None]
    return waiting_bytes(reading, RECORDS) + feedback_size, min(times, default=None)


def _seal_range(
    spool: Spool,
    reading: apsw.Connection,
    writer: str,
    first_last: tuple[int, int],
    replay_window_s: float,
    make_page: MakePage,
    result: SealResult,
) -> None:
    until_us = spool.clock.latest_us() + round(replay_window_s * 1e6)
    left: list[int] = []
    remembered: list[Sealed] = []
    with SegmentsWriter(spool.directory, writer, *first_last) as files:
        for rows in _pages(reading, first_last):
            page = make_page(rows, until_us)
            _check_whole(rows, page)
            for date, batch in page.batches:
                files.add(date, batch)
            remembered += page.sealed
            left += page.left
    made = read_back(spool.directory, files.rows(), first_last, until_us)
    kept = [one for one in remembered if replay_window_s > 0 or one.keep_until_us is None]
    change_in_pieces(spool, pieces(kept), catalog.remember)
    spool.transaction(lambda database: catalog.complete(database, made, left))
    result.records += sum(files.rows().values())
    result.files += files.rows()
    result.left += len(left)


def _pages(reading: apsw.Connection, first_last: tuple[int, int]) -> Iterator[list[StoredRow]]:
    """The rows of a range, in short transactions."""
    after, last = first_last[0] - 1, first_last[1]
    while rows := _rows(reading, after, last):
        yield rows
        after = rows[-1].ordinal


def _rows(reading: apsw.Connection, after: int, last: int) -> list[StoredRow]:
    rows: list[Any] = reading.execute(_PAGE, (after, last)).fetchall()
    return [StoredRow(*row) for row in rows]


def _check_whole(rows: Sequence[StoredRow], page: SealedPage) -> None:
    """The spool drops a range: a row that is not in a file, and not left on purpose, would be lost."""
    made = sorted(ordinal for _, batch in page.batches for ordinal in batch.column("ordinal").to_pylist())
    remembered = sorted(one.ordinal for one in page.sealed)
    if made != remembered or sorted(made + page.left) != [row.ordinal for row in rows]:
        raise LogError(f"rows {rows[0].ordinal} to {rows[-1].ordinal} of the spool did not all become rows of segments")

"""The log's front for a process that writes: commit, then reply.

    event loop   commit(record) ── encode ──► queue ─┐            ┌─► futures, one wake-up per group
    writer thread                                    └─► BEGIN, INSERT …, COMMIT (fsync) ─┘
    upkeep thread                  checkpoints, free space, the syncs of durability `async`

Whatever is queued when the writer is free becomes one group, up to a size, and one transaction (group commit); with
durability `group` it first lingers. What each durability promises is told at `LogConfig.durability`.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import apsw

from bon_server.config.settings import LogConfig
from bon_server.core.errors import InternalError, LogError, LogFull, RequestError, RequestIdReused, Unavailable
from bon_server.core.types import Durability
from bon_server.log.record import Record
from bon_server.log.spool.clock import SYSTEM, Clock, Times, proven
from bon_server.log.spool.database import SPOOL_NAME, SpoolRow, check_sqlite, open_for_reading, row_of
from bon_server.log.spool.lookup import Logged, Lookup
from bon_server.log.spool.upkeep import DiskRoom, Upkeep
from bon_server.log.spool.writer import RETRY_AFTER_MS, Writer
from bon_server.system.files import NameTaken, make_folder
from bon_server.system.lock import WriterLock
from bon_server.system.supervision import start_thread


@dataclass(frozen=True, slots=True)
class Group:
    """Records that were acknowledged together."""

    records: int
    seconds: tuple[float, ...]
    """(records,) from the call of `commit` to the acknowledgement."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A record that is not acknowledged yet."""

    row: SpoolRow
    future: asyncio.Future[int]
    """Of the event loop that waits: the ordinal."""
    since_s: float
    """Monotonic."""


class GroupQueue:
    """From event loops to one writer thread. linger_s: how long the first of a group waits for others."""

    def __init__(self, linger_s: float, group_records: int) -> None:
        self._linger_s = linger_s
        self._group_records = group_records
        self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._ended = False

    def put(self, waiting: Waiting) -> None:
        """Never blocks."""
        self._queue.put(waiting)

    def end(self) -> None:
        """Nothing more will be put."""
        self._queue.put(None)

    def next(self) -> list[Waiting]:
        """The next group; blocks until there is one. Empty: the end. For the writer thread."""
        first = None if self._ended else self._queue.get()
        if first is None:
            return []
        group = [first]
        until = time.monotonic() + self._linger_s
        while len(group) < self._group_records:
            wait_s = until - time.monotonic()
            try:
                waiting = self._queue.get(timeout=wait_s) if wait_s > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if waiting is None:
                self._ended = True
                break
            group.append(waiting)
        return group


def size_bytes(rows: Sequence[SpoolRow]) -> int:
    """Of the records, encoded."""
    return sum(len(row.record) for row in rows)


def answer(group: Sequence[Waiting], outcomes: Sequence[int | RequestError | None]) -> None:
    """Wakes each event loop once with what became of its records. None: that attempt was there already."""
    answers: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[int], int | RequestError]]] = {}
    for waiting, outcome in zip(group, outcomes, strict=True):
        if outcome is None:
            outcome = RequestIdReused("this attempt of the request is in the log already")
        answers.setdefault(waiting.future.get_loop(), []).append((waiting.future, outcome))
    for loop, settled in answers.items():
        with contextlib.suppress(RuntimeError):  # that loop has ended: nobody waits any more
            loop.call_soon_threadsafe(_settle, settled)


def _settle(settled: Sequence[tuple[asyncio.Future[int], int | RequestError]]) -> None:
    for future, outcome in settled:
        if future.done():
            continue
        if isinstance(outcome, RequestError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


DEFAULTS = LogConfig()
Result = TypeVar("Result")


class Spool:
    """The one writer of a log folder. Open with `Spool.open`."""

    def __init__(
        self,
        directory: Path,
        lock: WriterLock,
        config: LogConfig,
        on_failure: Callable[[LogError], None],
        on_group: Callable[[Group], None],
        times: Times,
    ) -> None:
        self.directory = directory
        self._lock = lock
        self._config = config
        self._on_group = on_group
        self._room = DiskRoom(directory, config.min_free_bytes)
        self._writer = Writer(directory, lock, on_failure, config.durability)
        self.recovery = self._writer.recovery
        """What was found on disk at the start."""
        self._lookup = Lookup(directory, self.cannot_read)
        with closing(open_for_reading(directory / SPOOL_NAME)) as reading:
            self.clock = Clock(proven(reading, directory), config.clock_is_right, times)
        self._mutex = threading.Lock()
        self._changing_mutex = threading.Lock()
        self._closed = False
        linger_s = config.linger_ms / 1e3 if config.durability is Durability.GROUP else 0.0
        self._queue = GroupQueue(linger_s, config.group_records)
        self.queued_records = 0
        """Not yet acknowledged."""
        self.queued_bytes = 0
        """Of the records not yet acknowledged, encoded."""
        is_async = config.durability is Durability.ASYNC
        self._upkeep = Upkeep(self._writer, self._room, config.async_sync_ms / 1e3 if is_async else None)
        self._group: Sequence[Waiting] = ()
        self._thread = start_thread("log-writer", self._write_groups, self._writer_died)

    @classmethod
    def open(
        cls,
        directory: Path,
        config: LogConfig = DEFAULTS,
        *,
        on_failure: Callable[[LogError], None] = lambda error: None,
        on_group: Callable[[Group], None] = lambda group: None,
        times: Times = SYSTEM,
    ) -> Self:
        """Takes the writer lock, recovers and starts the threads; makes the folder when there is none.

        config: all but its `directory` counts. on_failure: called once, on a thread of the log, when it has failed
        for good. on_group: called on the writer thread after each group. Neither may raise.
        times: other clocks, in tests.

        Raises `LogLocked` while another process writes this log, `LogError` when it cannot be read or written, and
        `StartupError` for an unsafe SQLite.
        """
        check_sqlite()
        make_folder(directory)
        lock = WriterLock(directory)
        try:
            return cls(directory, lock, config, on_failure, on_group, times)
        except BaseException:
            lock.release()
            raise

    @property
    def failure(self) -> LogError | None:
        """Why nothing can be committed any more; None: all is well."""
        return self._writer.failure

    def fail(self, why: str) -> None:
        """Closes the log for good, as a failed write does: a thread that it depends on has broken."""
        self._writer.fail(why)

    @property
    def full(self) -> bool:
        """There is no room on the disk; `check` refuses until there is again."""
        return self._room.full

    @property
    def free_bytes(self) -> int:
        """On the disk of the log, as of about a second ago."""
        return self._room.free_bytes

    @property
    def syncs(self) -> Mapping[str, int]:
        """Times the disk was waited for since the start, by cause: `commit`, `checkpoint`, `background`."""
        return self._writer.syncs

    def check(self) -> None:
        """Whether new work may be taken on, to be asked before it is.

        Raises `LogFull` while the disk is full, and `Unavailable` while the writer is behind by more than
        `queue_bytes`, after a final failure and after `close`.
        """
        self._check_open()
        self._room.check()
        if self.queued_bytes > self._config.queue_bytes:
            raise Unavailable("the log is behind", RETRY_AFTER_MS)

    async def commit(self, record: Record) -> int:
        """Returns the record's ordinal once it is as safe as the durability says.

        Cancelling the caller does not undo the commit. A low-water mark or a long queue does not refuse work that was
        done, see `check`. Raises `LogFull` when nothing more fits on the disk, `Unavailable` when the log has failed or
        is closed, `RequestIdReused` when this attempt is in the log already, and `InternalError` for a record that
        must not be logged.
        """
        try:
            row = row_of(record)
        except ValueError as error:
            raise InternalError("the record cannot be logged") from error
        waiting = Waiting(row, asyncio.get_running_loop().create_future(), time.monotonic())
        with self._mutex:
            self._check_open()
            self.queued_records += 1
            self.queued_bytes += len(row.record)
            self._queue.put(waiting)
        return await waiting.future

    def append(self, records: Sequence[Record]) -> list[int | None]:
        """Commits records in one transaction and returns their ordinals; None: that attempt is there already.

        For commands, not for an event loop: blocks until all is on disk. Raises as `commit` does, and ValueError for
        a record that must not be logged.
        """
        rows = [row_of(record) for record in records]
        with self._mutex:
            self.check()
        try:
            return self._writer.write(rows)
        except LogFull:
            self._room.ran_out(size_bytes(rows))
            raise
        finally:
            self._upkeep.committed()

    def transaction(self, change: Callable[[apsw.Connection], Result]) -> Result:
        """`Writer.transaction`, for what is no record. Blocks until it is on disk, whatever the durability.

        So never call it on an event loop. `change` must not raise: what it raises closes the log for good.
        """
        with self._changing_mutex:
            with self._mutex:
                self._check_open()
            try:
                result = self._writer.transaction(change)
                self._writer.sync()
                self._writer.check()
                return result
            finally:
                self._upkeep.committed()

    @contextmanager
    def reading(self) -> Iterator[apsw.Connection]:
        """A reading connection of its own, for what seals or removes.

        What the database then says, and a segment's name that is taken by something else, close the log for good, but
        for a lock that another program holds. Raises a `RequestError` for these.
        """
        try:
            connection = open_for_reading(self.directory / SPOOL_NAME)
        except LogError as error:
            raise self.cannot_read(error) from error
        with closing(connection):
            try:
                yield connection
            except (apsw.Error, NameTaken) as error:
                raise self.cannot_read(error) from error

    def cannot_read(self, error: Exception) -> RequestError:
        """What to raise for an error of a reading connection. It is final, as an error while writing is."""
        return self._writer.cannot_read(error)

    def latest(self, principal: str, request_id: str) -> Logged | None:
        """The latest attempt at a request, None when there is none or it was sealed too long ago.

        For the event loop: a look into two indices, without waiting for the writer. Tens of microseconds when there is
        none, and the decoding of one record when it is in the spool.
        Raises `Unavailable` when the log is closed or cannot be read (see `cannot_read`), and `InternalError` when the
        row is damaged.
        """
        return self._lookup.latest(principal, request_id)

    def read(self, logged: Logged) -> Record:
        """The record of what `latest` found; blocks for a look into a segment when it is in one.

        Raises `InternalError` when the segment cannot be read, and `Unavailable` as `latest` does.
        """
        return self._lookup.read(logged)

    def latest_attempt(self, principal: str, request_id: str) -> int | None:
        """The number of what `latest` would find, without reading it. Raises as `latest` does."""
        return self._lookup.latest_attempt(principal, request_id)

    def count_candidates(self, logged: Logged) -> int:
        """Of what `latest` found; reads no texts and no token ids. Blocks and raises as `read` does."""
        return self._lookup.count_candidates(logged)

    def find(self, principal: str, request_id: str) -> Record | None:
        """`latest` and `read` in one."""
        logged = self.latest(principal, request_id)
        return None if logged is None else self.read(logged)

    def close(self) -> None:
        """Commits what is queued, then lets go of the folder. Blocks; a second call does nothing."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            self._queue.end()
        self._thread.join()
        self._upkeep.close()
        self._lookup.close()
        with self._changing_mutex:
            self._writer.close()
        self._lock.release()

    def _check_open(self) -> None:
        self._writer.check()
        if self._closed:
            raise Unavailable("the log is closed", RETRY_AFTER_MS)

    def _write_groups(self) -> None:
        while group := self._queue.next():
            self._group = group
            self._write_group(group)
            self._upkeep.committed()

    def _writer_died(self, why: str) -> None:
        """Nobody may wait for a commit that will never come: not those of the last group, nor those behind them."""
        self.fail(why)
        group = list(self._group)
        while group:
            answer(group, [Unavailable("the log cannot be written", RETRY_AFTER_MS)] * len(group))
            group = self._queue.next()

    def _write_group(self, group: Sequence[Waiting]) -> None:
        rows = [waiting.row for waiting in group]
        outcomes: Sequence[int | RequestError | None]
        try:
            outcomes = self._writer.write(rows)
        except RequestError as error:
            outcomes = [error] * len(group)
            if isinstance(error, LogFull):
                self._room.ran_out(size_bytes(rows))
        answer(group, outcomes)
        now_s = time.monotonic()
        with self._mutex:
            self.queued_records -= len(group)
            self.queued_bytes -= size_bytes(rows)
        self._on_group(Group(len(group), tuple(now_s - waiting.since_s for waiting in group)))

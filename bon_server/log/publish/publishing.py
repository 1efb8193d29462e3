"""Publishing: sealed segments, those of feedback too, go to a store, each under its own name: it holds its writer's id.

    read        the local file, which must still be what the catalog says
    put         if the name is free; if it is taken, the object must have the same content
    confirm     the store says that it is there and how long it is
    describe    rows, bytes and sha256 in a small file beside it
    note        in the spool's file, so that the next start goes on from here

A crash anywhere before the last of them has it all done again, to the same effect. Several writers share one table
without knowing of each other.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import apsw

from bon_server.config.settings import LogConfig
from bon_server.core.errors import LogError
from bon_server.log import catalog, published
from bon_server.log.catalog import Segment
from bon_server.log.publish.store import Store, StoreError, check_apart
from bon_server.log.read.snapshot import read_snapshot, snapshot_files
from bon_server.log.spool.pieces import forget_overdue
from bon_server.log.spool.spool import Spool
from bon_server.system.files import sync_folder

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
"""Between attempts at a store that fails."""
ONE_OBJECT = ("conflict", "local")
"""Kinds of failures that another segment need not meet."""


def publish(store: Store, directory: Path, segment: Segment) -> None:
    """Puts one segment and its description; what is there already is compared. Raises `StoreError`."""
    content = content_of(directory, segment)
    if store.is_at(segment.file, directory / segment.file):
        raise StoreError("folder", f"{store.uri}/{segment.file} is the file of the log itself, and no copy")
    _put(store, segment.file, content)
    _put(store, published.description_of(segment.file), published.describe(segment))


def content_of(directory: Path, segment: Segment) -> bytes:
    """Of a sealed file, which must be as the catalog has it. Raises `StoreError`."""
    path = directory / segment.file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError("local", f"{path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != segment.sha256:
        raise StoreError("local", f"{path} is damaged: its sha256 is not the one it was sealed with")
    return content


def _put(store: Store, name: str, content: bytes) -> None:
    is_new = store.put(name, content)
    size = store.size_bytes(name)
    if size == len(content) and (is_new or store.sha256(name) == hashlib.sha256(content).hexdigest()):
        return
    there = f"{size} bytes long, not {len(content)}" if size != len(content) else "of the same length"
    raise StoreError(
        "conflict", f"{store.uri}/{name} is there with other content ({there}); it is not overwritten: look at both"
    )


def pause_s(failures: int) -> float:
    """How long to wait after so many failures in a row: doubling, with jitter, so that writers do not come at once."""
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16))
    return longest * random.uniform(0.5, 1)


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is sealed and not yet published."""

    segments: int = 0
    bytes: int = 0
    oldest_s: float | None = None
    """When the oldest of them was sealed, seconds since 1970; None: there is none."""


class Publishing:
    """Publishes what a spool has sealed, a round at a time. For one thread; its figures may be read from any.

    Raises `ConfigError` and `StartupError` as `Store` does; a store that is away is no reason not to start.
    """

    def __init__(self, spool: Spool, reading: apsw.Connection, config: LogConfig) -> None:
        assert config.publish is not None
        check_apart(spool.directory, config.publish)
        self._spool = spool
        self._reading = reading
        self._connect: Callable[[], Store] = partial(
            Store, config.publish, config.publish_options, config.publish_timeout_s
        )
        self._uri = config.publish.rstrip("/")
        self._keep_local = config.publish_keep_local
        self._store: Store | None = None
        with suppress(StoreError):
            self._store = self._connect()
        self._failed: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        """By kind, see `StoreError`."""
        self.last_failure: StoreError | None = None
        """Of the last round."""
        self.published = 0
        """Segments, since the start."""
        self.removed = 0
        """Local copies, since the start."""
        self.until_s = float("inf")
        """No other segment is begun then (monotonic). May be set from any thread."""
        spool.transaction(published.prepare)
        self._clear_away()
        self.backlog = Backlog()
        """As of the last look."""
        self._look()

    def round(self) -> bool:
        """Tries each waiting segment once; whether none is left.

        A store that fails ends the round; one object that cannot be published does not keep the others from it. Raises
        the `RequestError`s of `Spool.transaction` and apsw.Error.
        """
        self.last_failure = None
        for segment in sorted(self._look(), key=lambda one: self._failed[one.file]):
            if time.monotonic() >= self.until_s or not self._attempt(segment):
                break
        if not self._keep_local and self.last_failure is None:
            self._remove_local()
        return not self._look()

    def _look(self) -> list[Segment]:
        segments = published.waiting(self._reading, self._uri)
        oldest = min((_sealed_s(self._spool.directory / one.file) for one in segments), default=None)
        self.backlog = Backlog(len(segments), sum(one.bytes for one in segments), oldest)
        return segments

    def _attempt(self, segment: Segment) -> bool:
        """False: the store failed."""
        try:
            # Made anew after each failure: whatever it was, credentials are read again.
            self._store = self._store or self._connect()
            publish(self._store, self._spool.directory, segment)
        except StoreError as error:
            return self._note(error, segment.file)
        self._spool.transaction(lambda database: published.mark(database, segment.file, self._uri))
        self._failed.pop(segment.file, None)
        self.published += 1
        return True

    def _note(self, error: StoreError, file: str) -> bool:
        self._failed[file] += 1
        self.failures[error.kind] += 1
        self.last_failure = error
        if error.kind in ONE_OBJECT:
            return True
        self._store = None
        return False

    def _remove_local(self) -> None:
        self._spool.clock.tell()
        now_us = self._spool.clock.believed_us()
        forget_overdue(self._spool)  # what answers no retries must not be looked for in a file that has gone
        pinned = _pinned(self._spool.directory)
        for segment in self._removable(now_us):
            if segment.file in pinned or time.monotonic() >= self.until_s:
                continue
            try:
                self._store = self._store or self._connect()
                if self._store.is_at(segment.file, self._spool.directory / segment.file):
                    raise StoreError("folder", f"{self._uri}/{segment.file} is the file of the log itself: it stays")
                if self._store.sha256(segment.file) != segment.sha256:
                    raise StoreError("conflict", f"{self._uri}/{segment.file} has changed: the local copy stays")
            except StoreError as error:
                if self._note(error, segment.file):
                    continue
                return
            self._spool.transaction(partial(published.remove, file=segment.file, uri=self._uri))
            _unlink(self._spool.directory / segment.file)
            self.removed += 1

    def _removable(self, now_us: int) -> Iterator[Segment]:
        yield from published.removable(self._reading, self._uri, now_us)
        # Looked for when those have gone: what feedback is about goes first.
        yield from published.removable_feedback(self._reading, self._uri, now_us)

    def _clear_away(self) -> None:
        """What a crash left between taking a segment out of the log and removing its file."""
        here = {one.file for stream in catalog.STREAMS for one in catalog.segments(self._reading, stream=stream)}
        for file in published.removed(self._reading):
            if file not in here:
                _unlink(self._spool.directory / file)


def _pinned(directory: Path) -> set[str]:
    """Files that a snapshot names; raises `LogError` for a damaged one, for then nobody knows."""
    return {one["file"] for path in snapshot_files(directory) for one in read_snapshot(path)["segments"]}


def _sealed_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
        if path.parent.exists():
            sync_folder(path.parent)
    except OSError as error:
        raise LogError(f"{path} cannot be removed: {error.strerror}") from error

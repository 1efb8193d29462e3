"""What a log knows of a request: in the spool, or remembered of a segment. For retries, which get the logged answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import apsw

from bon_server.core.errors import InternalError, LogError, RequestError
from bon_server.core.types import Outcome
from bon_server.log import catalog
from bon_server.log.record import Record, decode
from bon_server.log.segments.reader import Fields, read_one
from bon_server.log.spool.database import SPOOL_NAME, StoredRow, open_for_reading, unpack

_FIND = """
SELECT attempt, ordinal, sha256, record FROM records
WHERE principal = ? AND request_id = ? ORDER BY attempt DESC LIMIT 1
"""


_ATTEMPT = "SELECT attempt FROM records WHERE principal = ? AND request_id = ? ORDER BY attempt DESC LIMIT 1"


@dataclass(frozen=True, slots=True)
class _Index:
    index: int


@dataclass(frozen=True, slots=True)
class _Indices:
    """As much of a record as tells how many candidates it has: its texts and token ids are not read."""

    candidates: tuple[_Index, ...]


@dataclass(frozen=True, slots=True)
class Logged:
    """What is known of a logged attempt without reading segments."""

    attempt: int
    outcome: Outcome
    request_digest: str
    content_logged: bool
    ordinal: int
    record: Record | None = None
    """None: it is in a segment, see `Spool.read`."""

    @classmethod
    def of(cls, record: Record) -> Self:
        """A record of the spool."""
        return cls(
            record.attempt,
            record.outcome,
            record.request_digest,
            record.content_logged,
            record.ordinal or 0,
            record,
        )

    @classmethod
    def sealed(cls, sealed: catalog.Sealed) -> Self:
        """A record of a segment."""
        outcome, logged = Outcome(sealed.outcome), bool(sealed.content_logged)
        return cls(sealed.attempt, outcome, sealed.request_digest, logged, sealed.ordinal)


class Lookup:
    """A reading connection of its own, for any thread. Its methods are those of `Spool`."""

    def __init__(self, directory: Path, cannot_read: Callable[[Exception], RequestError]) -> None:
        """cannot_read: told of what the database says, and answers what the caller is told."""
        self._directory = directory
        self._cannot_read = cannot_read
        self._reading = open_for_reading(directory / SPOOL_NAME)
        self._mutex = threading.Lock()

    def close(self) -> None:
        """Lets go of the file."""
        with self._mutex:
            self._reading.close()

    def latest(self, principal: str, request_id: str) -> Logged | None:
        """See `Spool.latest`."""
        with self._mutex:
            try:
                row = self._reading.execute(_FIND, (principal, request_id)).fetchone()
                sealed = catalog.latest(self._reading, principal, request_id)
            except apsw.Error as error:
                raise self._cannot_read(error) from error
        if row is not None and (sealed is None or row[0] >= sealed.attempt):
            return Logged.of(self._unpack(StoredRow(*row[1:])))
        return None if sealed is None else Logged.sealed(sealed)

    def latest_attempt(self, principal: str, request_id: str) -> int | None:
        """See `Spool.latest_attempt`."""
        with self._mutex:
            try:
                row = self._reading.execute(_ATTEMPT, (principal, request_id)).fetchone()
                sealed = catalog.latest(self._reading, principal, request_id)
            except apsw.Error as error:
                raise self._cannot_read(error) from error
        found = [*(() if row is None else row), *(() if sealed is None else (sealed.attempt,))]
        return max(found, default=None)

    def count_candidates(self, logged: Logged) -> int:
        """See `Spool.count_candidates`."""
        return len((logged.record or self._read(logged, _Indices)).candidates)

    def read(self, logged: Logged) -> Record:
        """See `Spool.read`."""
        return logged.record or self._read(logged, Record)

    def _read(self, logged: Logged, some_fields: type[Fields]) -> Fields:
        try:
            with self._mutex:
                segments = catalog.segments_around(self._reading, logged.ordinal)
        except apsw.Error as error:
            raise self._cannot_read(error) from error
        try:
            return read_one(self._directory, segments, logged.ordinal, some_fields)
        except LogError as error:
            raise InternalError("the logged answer cannot be read") from error

    def _unpack(self, row: StoredRow) -> Record:
        try:
            return unpack(row, decode, self._directory / SPOOL_NAME)
        except LogError as error:
            raise InternalError("the logged answer is damaged") from error

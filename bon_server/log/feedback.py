"""Feedback: what somebody observed about a logged request, or about one of its candidates.

It lives in the table `feedback` of the spool, where the column `feedback` is the MessagePack of one `Feedback` and
`sha256` its digest, and is joined to records by caller, request id and attempt. Like records it is committed before
the caller hears of it, and never changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import apsw
import msgspec

from bon_server.errors import LogError
from bon_server.log.database import SPOOL_NAME, open_for_reading
from bon_server.log.record import Record, to_json
from bon_server.log.spool import Spool

PAGE_ROWS = 256
_TABLE_EXISTS = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'feedback'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """One observation."""

    feedback_id: str
    """Idempotency key, scoped by `principal`."""
    request_id: str
    attempt: int
    """The attempt at the request that it is about: the latest one when it came."""
    candidate_index: int | None
    """None: the answer as a whole."""
    name: str
    """What was observed, for example `thumbs_up`."""
    value: bool | float | str
    created_at: datetime
    """When it came, UTC."""
    principal: str = ""
    """Who asked, and who observed."""
    tags: Mapping[str, str] = field(default_factory=dict)


class Recorded(Enum):
    """What became of an observation."""

    NEW = "new"
    REPLAYED = "replayed"
    """It was there already."""
    TAKEN = "taken"
    """Its id belongs to another observation."""


_to_msgpack = msgspec.msgpack.Encoder()
_from_msgpack = msgspec.msgpack.Decoder(Feedback)
_to_json = msgspec.json.Encoder()


def record_feedback(spool: Spool, feedback: Feedback) -> Recorded:
    """Commits an observation; blocks until it is on disk. Raises as `Spool.transaction` does."""
    blob = _to_msgpack.encode(feedback)
    row = (
        feedback.principal,
        feedback.feedback_id,
        feedback.request_id,
        hashlib.sha256(blob).digest(),
        blob,
    )

    def insert(database: apsw.Connection) -> bytes | None:
        same_id = "SELECT feedback FROM feedback WHERE principal = ? AND feedback_id = ?"
        there: bytes | None = database.execute(same_id, row[:2]).get
        if there is None:
            columns = "principal, feedback_id, request_id, sha256, feedback"
            database.execute(f"INSERT INTO feedback ({columns}) VALUES (?, ?, ?, ?, ?)", row)
        return there

    there = spool.transaction(insert)
    if there is None:
        return Recorded.NEW
    return Recorded.REPLAYED if _same(_from_msgpack.decode(there), feedback) else Recorded.TAKEN


def _same(there: Feedback, feedback: Feedback) -> bool:
    """Whether both say the same; when they came, and which attempt was the latest then, does not matter."""
    comparable = replace(there, created_at=feedback.created_at, attempt=feedback.attempt)
    return comparable == feedback and type(there.value) is type(feedback.value)


class FeedbackReader:
    """The feedback of a log, for any process, also while the server writes. Raises `LogError` as `LogReader` does."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / SPOOL_NAME
        # A folder of segments alone, and the log of an earlier version, have none.
        self._spool = open_for_reading(self._file) if self._file.exists() else None
        self._any = bool(self._query(_TABLE_EXISTS)[0][0]) if self._spool is not None else False

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

    def count(self) -> int:
        """How many observations there are."""
        return int(self._query("SELECT count(*) FROM feedback")[0][0]) if self._any else 0

    def all(self) -> Iterator[Feedback]:
        """In commit order."""
        ordinal = 0
        page = f"SELECT ordinal, sha256, feedback FROM feedback WHERE ordinal > ? ORDER BY ordinal LIMIT {PAGE_ROWS}"
        while rows := self._query(page, ordinal) if self._any else []:
            for ordinal, sha256, blob in rows:
                yield self._unpack(ordinal, sha256, blob)

    def of(self, record: Record) -> list[Feedback]:
        """What was observed about a record, in commit order."""
        if not self._any:
            return []
        statement = (
            "SELECT ordinal, sha256, feedback FROM feedback WHERE principal = ? AND request_id = ? ORDER BY ordinal"
        )
        rows = self._query(statement, record.principal, record.request_id)
        return [one for row in rows if (one := self._unpack(*row)).attempt == record.attempt]

    def _unpack(self, ordinal: int, sha256: bytes, blob: bytes) -> Feedback:
        if hashlib.sha256(blob).digest() != sha256:
            raise LogError(f"{self._file}: feedback {ordinal} is damaged: its content does not match its sha256")
        try:
            return _from_msgpack.decode(blob)
        except msgspec.MsgspecError as error:
            raise LogError(f"{self._file}: feedback {ordinal} cannot be read ({type(error).__name__})") from error

    def _query(self, statement: str, *values: int | str) -> list[tuple[Any, ...]]:
        assert self._spool is not None
        try:
            return self._spool.execute(statement, values).fetchall()
        except apsw.Error as error:
            raise LogError(f"{self._file} cannot be read: {error}") from error


def to_json_with(record: Record, feedback: list[Feedback]) -> bytes:
    """As `to_json`, with the key `feedback` added."""
    return to_json(record)[:-1] + b',"feedback":' + _to_json.encode(feedback) + b"}"

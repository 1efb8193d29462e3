"""Feedback: what somebody observed about a logged request, or about one of its candidates.

It is committed to the table `feedback` of the spool, where the column `feedback` is the MessagePack of one `Feedback`
and `sha256` its digest, and later sealed into segments of its own. It is joined to records by caller, request id and
attempt. Like records it is committed before the caller hears of it, and never changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum

import apsw
import msgspec

from bon_server.core.errors import LogError
from bon_server.log import catalog
from bon_server.log.record import Record, to_json
from bon_server.log.spool.database import SPOOL_NAME
from bon_server.log.spool.spool import Spool

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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
_to_sorted_msgpack = msgspec.msgpack.Encoder(order="sorted")
_from_msgpack = msgspec.msgpack.Decoder(Feedback)
_to_json = msgspec.json.Encoder()


def record_feedback(spool: Spool, feedback: Feedback) -> Recorded:
    """Commits an observation; blocks until it is on disk. Raises as `Spool.transaction` does."""
    blob = encode(feedback)
    id_of = (feedback.principal, feedback.feedback_id)
    row = (*id_of, feedback.request_id, hashlib.sha256(blob).digest(), blob)

    def insert(database: apsw.Connection) -> tuple[bytes | None, bytes | None]:
        """What is there under this id: in the spool, and the digest of what was sealed."""
        same_id = "SELECT feedback FROM feedback WHERE principal = ? AND feedback_id = ?"
        there: bytes | None = database.execute(same_id, id_of).get
        sealed = catalog.said_under(database, *id_of)
        if there is None and sealed is None:
            columns = "principal, feedback_id, request_id, sha256, feedback"
            database.execute(f"INSERT INTO feedback ({columns}) VALUES (?, ?, ?, ?, ?)", row)
        return there, sealed

    there, sealed = spool.transaction(insert)
    if there is None and sealed is None:
        return Recorded.NEW
    same = said(decode(there)) if there is not None else sealed
    return Recorded.REPLAYED if same == said(feedback) else Recorded.TAKEN


def said(feedback: Feedback) -> bytes:
    """Digest of what an observation says: all but when it came, and which attempt was the latest then."""
    return hashlib.sha256(_to_sorted_msgpack.encode(_timeless(feedback))).digest()


def _timeless(feedback: Feedback) -> Feedback:
    return replace(feedback, created_at=_EPOCH, attempt=0)


def unpack(ordinal: int, sha256: bytes, blob: bytes) -> Feedback:
    """A row of the table. Raises `LogError`, naming the row, when it is damaged."""
    if hashlib.sha256(blob).digest() != sha256:
        raise LogError(f"{SPOOL_NAME}: feedback {ordinal} is damaged: its content does not match its sha256")
    try:
        return decode(blob)
    except msgspec.MsgspecError as error:
        raise LogError(f"{SPOOL_NAME}: feedback {ordinal} cannot be read ({type(error).__name__})") from error


def encode(feedback: Feedback) -> bytes:
    """As MessagePack, as the spool holds it."""
    return _to_msgpack.encode(feedback)


def decode(blob: bytes) -> Feedback:
    """Inverse of `encode`; raises `msgspec.DecodeError` for what is no observation."""
    return _from_msgpack.decode(blob)


def to_json_with(record: Record, feedback: list[Feedback]) -> bytes:
    """As `to_json`, with the key `feedback` added."""
    return to_json(record)[:-1] + b',"feedback":' + _to_json.encode(feedback) + b"}"

"""What must be true of every record, and of all records of a writer together."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import apsw

from bon_server.log.record import Record
from bon_server.types import CandidateStatus, Outcome

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


class Seen:
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

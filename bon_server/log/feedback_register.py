"""What the spool's file knows of sealed feedback: the tables of `register.FEEDBACK`, and ids for repeated calls.

feedback_segments   the sealed files, in the order of sealing
feedback_sealing    the range of ordinals being written to files just now
feedback_sealed     through which ordinal there has been sealing
sealed_feedback     ids of sealed observations with a digest of what was said, so that a repeated call is known
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import apsw

from bon_server.log.register import SEGMENT_COLUMNS

FEEDBACK_REGISTER = f"""
CREATE TABLE IF NOT EXISTS feedback_segments (
    number INTEGER PRIMARY KEY,
{SEGMENT_COLUMNS}
) STRICT;
CREATE TABLE IF NOT EXISTS feedback_sealing (first_ordinal INTEGER NOT NULL, last_ordinal INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS feedback_sealed (through INTEGER NOT NULL) STRICT;
INSERT INTO feedback_sealed SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM feedback_sealed);
CREATE TABLE IF NOT EXISTS sealed_feedback (
    principal TEXT NOT NULL,
    feedback_id TEXT NOT NULL,
    said BLOB NOT NULL,
    ordinal INTEGER NOT NULL,
    keep_until_us INTEGER NOT NULL,
    PRIMARY KEY (principal, feedback_id)
) STRICT, WITHOUT ROWID;
"""


class SealedFeedback(NamedTuple):
    """What is kept of a sealed observation for repeated calls."""

    principal: str
    feedback_id: str
    said: bytes
    """Digest, see `feedback.said`."""
    ordinal: int
    keep_until_us: int


def remember(database: apsw.Connection, observations: Iterable[SealedFeedback]) -> None:
    """Keeps ids; says anew what is kept of them already."""
    database.executemany("INSERT OR REPLACE INTO sealed_feedback VALUES (?, ?, ?, ?, ?)", observations)


def said_under(database: apsw.Connection, principal: str, feedback_id: str) -> bytes | None:
    """Digest of the sealed observation with this id; None: there is none, or it is not remembered any more."""
    statement = "SELECT said FROM sealed_feedback WHERE principal = ? AND feedback_id = ?"
    digest: bytes | None = database.execute(statement, (principal, feedback_id)).get
    return digest


def overdue(database: apsw.Connection, now_us: int, most: int, after: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Keys of ids whose time is over, for `forget`, in their order; a limited number of those after a key."""
    # No index has their times; one pass in the order of the key looks at each row once.
    keys = (
        "SELECT principal, feedback_id FROM sealed_feedback WHERE (principal, feedback_id) > (?, ?)"
        " AND keep_until_us < ? ORDER BY principal, feedback_id LIMIT ?"
    )
    return database.execute(keys, (*after, now_us, most)).fetchall()


def forget(database: apsw.Connection, keys: Iterable[tuple[Any, ...]], now_us: int) -> None:
    """Drops ids, of these whose time is over."""
    statement = "DELETE FROM sealed_feedback WHERE principal = ? AND feedback_id = ? AND keep_until_us < ?"
    database.executemany(statement, ((*key, now_us) for key in keys))

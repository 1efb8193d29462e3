"""What the spool's file knows of sealed feedback; the scheme of `register.py`, whose writer id it shares.

feedback_segments   the sealed files, in the order of sealing
feedback_sealing    the range of ordinals being written to files just now
feedback_sealed     through which ordinal there has been sealing
sealed_feedback     ids of sealed observations with a digest of what was said, so that a repeated call is known
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import apsw

from bon_server.log.register import Segment

FEEDBACK_REGISTER = """
CREATE TABLE IF NOT EXISTS feedback_segments (
    number INTEGER PRIMARY KEY,
    file TEXT NOT NULL UNIQUE,
    first_ordinal INTEGER NOT NULL,
    last_ordinal INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    footer_sha256 TEXT NOT NULL,
    replayable_until_us INTEGER NOT NULL
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
_FIRST_LAYOUT = 3


class SealedFeedback(NamedTuple):
    """What is kept of a sealed observation for repeated calls."""

    principal: str
    feedback_id: str
    said: bytes
    """Digest, see `feedback.said`."""
    ordinal: int
    keep_until_us: int


def segments(database: apsw.Connection, after: int = 0) -> list[Segment]:
    """The registered segments in the order of sealing; only those whose sealings began after an ordinal."""
    if database.pragma("user_version") < _FIRST_LAYOUT:
        return []
    columns = ", ".join(Segment._fields)
    statement = f"SELECT {columns} FROM feedback_segments WHERE first_ordinal > ? ORDER BY number"
    return [Segment(*row) for row in database.execute(statement, (after,))]


def sealed_through(database: apsw.Connection) -> int:
    """The last ordinal that was sealed; what is left below it in the spool could not be."""
    if database.pragma("user_version") < _FIRST_LAYOUT:
        return 0
    return database.execute("SELECT through FROM feedback_sealed").get or 0


def planned(database: apsw.Connection) -> tuple[int, int] | None:
    """First and last ordinal of a sealing that is under way, or that a crash interrupted."""
    if database.pragma("user_version") < _FIRST_LAYOUT:
        return None
    plan: tuple[int, int] | None = database.execute("SELECT * FROM feedback_sealing").fetchone()
    return plan


def plan(database: apsw.Connection, first_ordinal: int, last_ordinal: int) -> None:
    """Notes what will be sealed next."""
    database.execute("INSERT INTO feedback_sealing VALUES (?, ?)", (first_ordinal, last_ordinal))


def remember(database: apsw.Connection, observations: Iterable[SealedFeedback]) -> None:
    """Keeps ids; says anew what is kept of them already."""
    database.executemany("INSERT OR REPLACE INTO sealed_feedback VALUES (?, ?, ?, ?, ?)", observations)


def said_under(database: apsw.Connection, principal: str, feedback_id: str) -> bytes | None:
    """Digest of the sealed observation with this id; None: there is none, or it is not remembered any more."""
    statement = "SELECT said FROM sealed_feedback WHERE principal = ? AND feedback_id = ?"
    digest: bytes | None = database.execute(statement, (principal, feedback_id)).get
    return digest


def complete(database: apsw.Connection, made: Sequence[Segment], left: Sequence[int]) -> None:
    """Registers the segments of the plan and drops its rows from the spool, but for the `left` ordinals."""
    places = ", ".join("?" for _ in Segment._fields)
    columns = ", ".join(Segment._fields)
    database.executemany(f"INSERT INTO feedback_segments ({columns}) VALUES ({places})", made)
    database.execute(
        "DELETE FROM feedback WHERE ordinal BETWEEN (SELECT first_ordinal FROM feedback_sealing)"
        " AND (SELECT last_ordinal FROM feedback_sealing) AND ordinal NOT IN (SELECT value FROM json_each(?))",
        (str(list(left)),),
    )
    database.execute("UPDATE feedback_sealed SET through = (SELECT last_ordinal FROM feedback_sealing)")
    database.execute("DELETE FROM feedback_sealing")


def forget(database: apsw.Connection, now_us: int) -> None:
    """Drops ids whose time is over."""
    database.execute("DELETE FROM sealed_feedback WHERE keep_until_us < ?", (now_us,))

"""What the spool's file knows of publishing, and the description that is put beside a published segment.

    published(file, uri, published_at_us, removed_at_us)

The table is made when something is first published. A segment that is in `segments` and not here, under a URI, waits.
One whose local copy has been removed is here and no longer in `segments`: it is not part of the local log any more.
"""

from __future__ import annotations

import time
from pathlib import Path

import apsw
import msgspec

from bon_server.errors import LogError
from bon_server.log.register import Segment

_TABLE = """
CREATE TABLE IF NOT EXISTS published (
    file TEXT NOT NULL,
    uri TEXT NOT NULL,
    published_at_us INTEGER NOT NULL,
    removed_at_us INTEGER,
    PRIMARY KEY (file, uri)
) STRICT, WITHOUT ROWID
"""
_COLUMNS = ", ".join(f"segments.{name}" for name in Segment._fields)
_PUBLISHED = "(SELECT 1 FROM published WHERE published.file = segments.file AND uri = ?)"


def prepare(database: apsw.Connection) -> None:
    """Makes the table where there is none yet."""
    database.execute(_TABLE)


def waiting(database: apsw.Connection, uri: str) -> list[Segment]:
    """Segments that are not published there, in the order of sealing."""
    rows = database.execute(f"SELECT {_COLUMNS} FROM segments WHERE NOT EXISTS {_PUBLISHED} ORDER BY number", (uri,))
    return [Segment(*row) for row in rows]


def mark(database: apsw.Connection, file: str, uri: str) -> None:
    """Notes that a segment is there."""
    row = (file, uri, time.time_ns() // 1_000)
    database.execute("INSERT OR IGNORE INTO published (file, uri, published_at_us) VALUES (?, ?, ?)", row)


def removable(database: apsw.Connection, uri: str, now_us: int) -> list[Segment]:
    """Segments that are published there and whose records answer no retries any more.

    Without the newest: readers look for segments by rising numbers, and the number of the last would be used again.
    """
    rows = database.execute(
        f"SELECT {_COLUMNS} FROM segments WHERE EXISTS {_PUBLISHED} AND replayable_until_us < ?"
        " AND number < (SELECT max(number) FROM segments) ORDER BY number",
        (uri, now_us),
    )
    return [Segment(*row) for row in rows]


def remove(database: apsw.Connection, file: str, uri: str) -> None:
    """Takes a segment out of the local log."""
    database.execute("DELETE FROM segments WHERE file = ?", (file,))
    row = (time.time_ns() // 1_000, file, uri)
    database.execute("UPDATE published SET removed_at_us = ? WHERE file = ? AND uri = ?", row)


def removed(database: apsw.Connection) -> list[str]:
    """Files that are published only."""
    if not database.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'published'").get:
        return []
    rows = database.execute("SELECT DISTINCT file FROM published WHERE removed_at_us IS NOT NULL ORDER BY file")
    return [row[0] for row in rows]


def description_of(file: str) -> str:
    """Name of what is put beside a segment. Its underscore keeps Spark and Arrow from reading it as data."""
    folder, _, name = file.rpartition("/")
    return f"{folder}/_{name.removesuffix('.parquet')}.json"


def describe(segment: Segment) -> bytes:
    """Content of the description; the same segment has the same bytes."""
    return msgspec.json.format(msgspec.json.encode(segment._asdict()), indent=1) + b"\n"


def described(directory: Path, file: str) -> Segment | None:
    """What the description beside a segment says; None: there is none. Raises `LogError` for one that is damaged."""
    path = directory / description_of(file)
    try:
        return Segment(**msgspec.json.decode(path.read_bytes(), type=dict))
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, TypeError, UnicodeDecodeError) as error:
        raise LogError(f"{path} is damaged or no description of a segment ({type(error).__name__})") from error

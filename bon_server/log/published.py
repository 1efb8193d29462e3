"""What the spool's file knows of publishing, and the description that is put beside a published segment.

    published(file, uri, published_at_us, removed_at_us)

The table is made when something is first published. A segment, of records or of feedback, that is in the catalog and
not here, under a URI, waits. One whose local copy has been removed is here and no longer in the catalog: it is not part
of the local log any more.
"""

from __future__ import annotations

import time
from pathlib import Path

import apsw
import msgspec

from bon_server.core.errors import LogError
from bon_server.log.catalog import FEEDBACK, RECORDS, STREAMS, Segment, StreamTables, stream_of

_TABLE = """
CREATE TABLE IF NOT EXISTS published (
    file TEXT NOT NULL,
    uri TEXT NOT NULL,
    published_at_us INTEGER NOT NULL,
    removed_at_us INTEGER,
    PRIMARY KEY (file, uri)
) STRICT, WITHOUT ROWID
"""
_COLUMNS = ", ".join(f"made.{name}" for name in Segment._fields)
_PUBLISHED = "(SELECT 1 FROM published WHERE published.file = made.file AND uri = ?)"

_DATE = slice(len("segments/date="), len("segments/date=YYYY-MM-DD"))
"""Of the name of a file; also of one of feedback."""
_OLDEST_DATE = f"""
SELECT min(date) FROM (
    SELECT substr(file, {_DATE.start + 1}, 10) AS date FROM segments
    UNION ALL SELECT date(created_at_us / 1000000, 'unixepoch') FROM records
)
"""


def prepare(database: apsw.Connection) -> None:
    """Makes the table where there is none yet."""
    database.execute(_TABLE)


def waiting(database: apsw.Connection, uri: str) -> list[Segment]:
    """Segments that are not published there, those of records first, each kind in the order of sealing."""
    found = []
    for stream in STREAMS:
        made = f"SELECT {_COLUMNS} FROM {stream.segments} AS made"
        rows = database.execute(f"{made} WHERE NOT EXISTS {_PUBLISHED} ORDER BY number", (uri,))
        found += [Segment(*row) for row in rows]
    return found


def mark(database: apsw.Connection, file: str, uri: str) -> None:
    """Notes that a segment is there."""
    row = (file, uri, time.time_ns() // 1_000)
    database.execute("INSERT OR IGNORE INTO published (file, uri, published_at_us) VALUES (?, ?, ?)", row)


def removable(database: apsw.Connection, uri: str, now_us: int) -> list[Segment]:
    """Segments of records that are published there and answer no retries any more.

    Without the newest: readers look for segments by rising numbers, and the number of the last would be used again.
    """
    return _removable(database, uri, now_us, RECORDS)


def removable_feedback(database: apsw.Connection, uri: str, now_us: int) -> list[Segment]:
    """The same for feedback, which stays while records of its date, or before, are here."""
    oldest = database.execute(_OLDEST_DATE).get or ""
    return [one for one in _removable(database, uri, now_us, FEEDBACK) if one.file[_DATE] < oldest]


def _removable(database: apsw.Connection, uri: str, now_us: int, stream: StreamTables) -> list[Segment]:
    rows = database.execute(
        f"SELECT {_COLUMNS} FROM {stream.segments} AS made WHERE EXISTS {_PUBLISHED} AND replayable_until_us < ?"
        f" AND number < (SELECT max(number) FROM {stream.segments}) ORDER BY number",
        (uri, now_us),
    )
    return [Segment(*row) for row in rows]


def remove(database: apsw.Connection, file: str, uri: str) -> None:
    """Takes a segment out of the local log."""
    database.execute(f"DELETE FROM {stream_of(file).segments} WHERE file = ?", (file,))
    row = (time.time_ns() // 1_000, file, uri)
    database.execute("UPDATE published SET removed_at_us = ? WHERE file = ? AND uri = ?", row)


def removed(database: apsw.Connection) -> list[str]:
    """Files that are published only."""
    if not _has_table(database):
        return []
    rows = database.execute("SELECT DISTINCT file FROM published WHERE removed_at_us IS NOT NULL ORDER BY file")
    return [row[0] for row in rows]


def files(database: apsw.Connection, uri: str) -> list[str]:
    """Files that are published there, whether or not they are here, sorted."""
    if not _has_table(database):
        return []
    return [row[0] for row in database.execute("SELECT file FROM published WHERE uri = ? ORDER BY file", (uri,))]


def places(database: apsw.Connection) -> list[str]:
    """Where anything was published, sorted."""
    if not _has_table(database):
        return []
    return [row[0] for row in database.execute("SELECT DISTINCT uri FROM published ORDER BY uri")]


def _has_table(database: apsw.Connection) -> bool:
    return bool(database.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'published'").get)


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
        return parse(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None


def parse(description: bytes, name: str) -> Segment:
    """Inverse of `describe`. name: what the description is called in a `LogError` about damage."""
    try:
        return Segment(**msgspec.json.decode(description, type=dict))
    except (msgspec.MsgspecError, TypeError, UnicodeDecodeError) as error:
        raise LogError(f"{name} is damaged or no description of a segment ({type(error).__name__})") from error

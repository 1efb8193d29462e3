"""The feedback of a log as `bon log verify` reads it: what the catalog says, and every row of the spool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

from bon_server.core.errors import LogError
from bon_server.log import catalog
from bon_server.log.catalog import Segment
from bon_server.log.feedback import Feedback, unpack
from bon_server.log.published import described
from bon_server.log.segments.feedback_columns import FEEDBACK
from bon_server.log.segments.files import listed, place_of
from bon_server.log.segments.reader import SegmentView, part_of
from bon_server.log.spool.database import SPOOL_NAME, open_for_reading

_PAGE = (
    "SELECT ordinal, sha256, feedback, principal, feedback_id, request_id FROM feedback"
    " WHERE ordinal > ? ORDER BY ordinal LIMIT 256"
)


@dataclass(frozen=True, slots=True)
class Known:
    """What the catalog knows besides the segments of records."""

    own_writer: str = ""
    feedback: dict[str, Segment] = field(default_factory=dict)
    """Segments by file."""
    plan: tuple[int, int] | None = None
    """Of a sealing of feedback that was under way."""
    rewriting: dict[str, catalog.Version] = field(default_factory=dict)
    expired: frozenset[str] = frozenset()


def read_catalog(directory: Path) -> Known:
    """Raises `LogError` when it cannot be read."""
    if not (directory / SPOOL_NAME).exists():
        return Known()
    with closing(open_for_reading(directory / SPOOL_NAME)) as database:
        try:
            database.execute("BEGIN")
            return Known(
                catalog.writer_id(database) or "",
                {one.file: one for one in catalog.segments(database, stream=catalog.FEEDBACK)},
                catalog.planned(database, catalog.FEEDBACK),
                catalog.rewritings(database),
                frozenset(catalog.expired(database)),
            )
        except apsw.Error as error:
            raise LogError(f"{directory / SPOOL_NAME} cannot be read: {error}") from error


def feedback_parts(directory: Path, known: Known) -> Iterator[tuple[str, SegmentView]]:
    """Every feedback segment of the log, with the name of its writer."""
    for segment in known.feedback.values():
        yield known.own_writer, part_of(directory, segment)
    for file in listed(directory, FEEDBACK.folder):
        place = place_of(file, FEEDBACK.folder)
        if place is not None and place.writer != known.own_writer:
            yield place.writer, SegmentView(directory / file, place.date, place.first_ordinal, place.last_ordinal)


def described_feedback(directory: Path, own_writer: str, on_damage: Callable[[LogError], None]) -> dict[str, Segment]:
    """What the descriptions beside published feedback of other writers say, by file; `on_damage` hears of bad ones."""
    found = {}
    for file in listed(directory, FEEDBACK.folder):
        place = place_of(file, FEEDBACK.folder)
        if place is not None and place.writer != own_writer:
            try:
                segment = described(directory, file)
            except LogError as error:
                on_damage(error)
                continue
            if segment is not None:
                found[file] = segment
    return found


def feedback_rows(directory: Path) -> Iterator[tuple[int, Feedback | LogError, bool]]:
    """Ordinals of the spool's feedback with what each holds, and whether its columns are copies of that."""
    path = directory / SPOOL_NAME
    if not path.exists():
        return
    with closing(open_for_reading(path)) as database:
        after = 0
        try:
            if not database.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'feedback'").get:
                return
            while rows := _page(database, after):
                for ordinal, sha256, blob, *copies in rows:
                    yield ordinal, *_unpacked(ordinal, sha256, blob, copies)
                after = rows[-1][0]
        except apsw.Error as error:
            raise LogError(f"{path} cannot be read after feedback {after}: {error}") from error


def _page(database: apsw.Connection, after: int) -> list[Any]:
    return database.execute(_PAGE, (after,)).fetchall()


def _unpacked(ordinal: int, sha256: bytes, blob: bytes, copies: list[str]) -> tuple[Feedback | LogError, bool]:
    try:
        one = unpack(ordinal, sha256, blob)
    except LogError as error:
        return error, True
    return one, [one.principal, one.feedback_id, one.request_id] == copies

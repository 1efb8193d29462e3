"""`bon log erase`: removes records, with their feedback, from every file of a log.

    finish       what a crash left of an erasure; what it left of a sealing is removed, its rows are in the spool
    find         the records and the feedback, in all segments and the spool; an id that several callers used is refused
    mark         the snapshots that pin a file about to change are stale from here on
    feedback     segments and rows
    scores       of them that were added, see `log/scores/files.py`
    segments     each rewritten: see `rewrite.py`
    spool        rows, and what was kept to recognise retries
    scrub        the database is written anew and its write-ahead log emptied, so that no free page holds a text
    published    with `publish`, the published copies: see `erase_published.py`

The log needs no server and has none: the writer lock is held. Readers go on; each sees a file as it was or as it is.
Feedback and scores go before their records, which are how they are found: after a crash at any point the same command
finishes.

What imports keep of their lines are digests and stay: importing the same file again must not bring back what was
erased.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict

import apsw
import msgspec

from bon_server.config.settings import LogConfig
from bon_server.core.errors import ConfigError, LogError
from bon_server.log import catalog, published
from bon_server.log.feedback import unpack as unpack_feedback
from bon_server.log.publish.publishing import content_of
from bon_server.log.publish.store import Store, StoreError, check_apart
from bon_server.log.read.snapshot import mark_stale
from bon_server.log.remove.erase_published import PublishedCopies
from bon_server.log.remove.rewrite import Key, Match, erase_scores, matching_rows, rewrite
from bon_server.log.scores.files import changing_scores
from bon_server.log.segments.feedback_columns import FEEDBACK
from bon_server.log.segments.files import RECORDS, SegmentKind, listed, place_of
from bon_server.log.spool.database import SPOOL_NAME, StoredRow, open_for_writing, unpack_fields
from bon_server.log.spool.pieces import pieces
from bon_server.system.files import sha256_of, sync_folder
from bon_server.system.lock import WriterLock

NOT_PUBLISHED = LogConfig()


class Erased(TypedDict):
    """The document of `bon log erase --json`."""

    principals: list[str]
    """Whose records and feedback they were, sorted; empty: nobody's."""
    records: int
    """Removed, from segments and spool."""
    feedback: int
    """Observations removed."""
    scores: int
    """Rows of added scores removed."""
    rewritten: list[str]
    """Sealed files that hold less now, relative to the log folder."""
    stale_snapshots: list[str]
    """Names of snapshots that pin one of them."""
    republished: list[str]
    """Published objects that hold less now, relative to where they are."""
    not_searched: list[str]
    """Reports on rejected lines of imports, which are no records but may hold texts, and places that the log was
    published to."""


@dataclass(frozen=True, slots=True)
class _Tagged:
    tags: dict[str, str] = field(default_factory=dict)


def erase(directory: Path, match: Match, config: LogConfig = NOT_PUBLISHED) -> Erased:
    """Removes what matches; blocks. Doing it again does no harm and completes what was interrupted.

    config: where it does so too, `publish`, and how to get there.

    Raises `LogLocked` while another process writes this log, `ConfigError` for a match of everything or nothing, for a
    request id that several callers used when the match names none of them, and for a place that cannot be,
    `StartupError` without the package for it, and `LogError` when a file or object cannot be read, so that it is not
    known what it holds, or cannot be written.
    """
    if (match.request_id is None) == (match.tag is None):
        raise ConfigError("erase: give either a request id or a tag")
    if not (directory / SPOOL_NAME).is_file():
        raise LogError(f"{directory} holds no log: {SPOOL_NAME} is missing")
    with ExitStack() as resources:
        resources.callback(WriterLock(directory).release)
        resources.enter_context(changing_scores(directory))
        try:
            database = resources.enter_context(closing(open_for_writing(directory)))
            database.pragma("secure_delete", True)
            store = None
            if config.publish is not None:
                check_apart(directory, config.publish)
                store = Store(config.publish, config.publish_options, config.publish_timeout_s)
            return _Erasure(directory, database, match, store).run()
        except (apsw.Error, OSError, StoreError) as error:
            raise LogError(f"{directory}: the erasure is not complete, run it again: {error}") from error


@dataclass(frozen=True, slots=True)
class _Feedback:
    """Observations to remove."""

    segments: dict[str, set[Key]]
    only_there: dict[str, set[Key]]
    """Published, and no longer here."""
    spool: set[Key] = field(default_factory=set)

    def keys(self) -> Iterator[Key]:
        """Of all of them."""
        return chain(self.spool, *self.segments.values(), *self.only_there.values())

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(1 for _ in self.keys())


class _Erasure:
    """One run."""

    def __init__(self, directory: Path, database: apsw.Connection, match: Match, store: Store | None) -> None:
        self._directory = directory
        self._database = database
        self._match = match
        self._store = store
        self._keys: set[Key] = set()
        self._rewritten: list[str] = []

    def run(self) -> Erased:
        """All steps."""
        self._finish()
        copies = None if self._store is None else PublishedCopies(self._directory, self._database, self._store)
        segments = self._segments(RECORDS)
        rows = list(self._spool_rows())
        only_there = self._only_there(copies, RECORDS)
        found = self._find_feedback(copies)
        principals = self._whose(found)
        if self._match.request_id is not None and principals:
            self._match = replace(self._match, principal=principals[0])
        stale = mark_stale(self._directory, segments)
        self._erase_feedback(copies, found)
        scores = erase_scores(self._directory, self._match, self._keys)
        self._rewritten += scores
        for file, keys in segments.items():
            self._rewrite(file, RECORDS, keys)
        self._forget(self._keys)
        with self._database:
            remembered = ((self._match.request_id, principal) for principal in principals)
            self._database.executemany("DELETE FROM sealed WHERE request_id = ? AND principal = ?", remembered)
        self._delete("DELETE FROM records WHERE ordinal = ?", ((row,) for row in rows))
        self._scrub()
        if copies is not None:
            self._erase_copies(copies, only_there)
        return Erased(
            principals=principals,
            records=len(rows) + sum(map(len, (*segments.values(), *only_there.values()))),
            feedback=found.count,
            scores=sum(scores.values()),
            rewritten=self._rewritten,
            stale_snapshots=stale,
            republished=[] if copies is None else copies.replaced,
            not_searched=self._not_searched(),
        )

    def _segments(self, table: SegmentKind) -> dict[str, set[Key]]:
        """Files with something to remove."""
        files = listed(self._directory, table.folder)
        return {file: found for file in files if (found := self._found_in(self._directory / file, table))}

    def _only_there(self, copies: PublishedCopies | None, table: SegmentKind) -> dict[str, set[Key]]:
        """Published objects that have gone from here, with something to remove."""
        files = [] if copies is None else copies.only_there(table)
        search = partial(self._found_in, table=table)
        return {file: found for file in files if copies is not None and (found := copies.search(file, search))}

    def _erase_copies(self, copies: PublishedCopies, only_there: Mapping[str, Collection[Key]]) -> None:
        for file, keys in only_there.items():
            copies.rewrite(file, RECORDS, keys)
        copies.bring_up_to_date(partial(content_of, self._directory))
        if copies.failures:
            raise copies.failures[0]

    def _not_searched(self) -> list[str]:
        rejected = (str(path.relative_to(self._directory)) for path in self._directory.glob("rejected/*"))
        done = None if self._store is None else self._store.uri
        return [*sorted(rejected), *(place for place in published.places(self._database) if place != done)]

    def _finish(self) -> None:
        for path in self._directory.rglob(".*.tmp"):
            path.unlink()
        for file, version in catalog.rewritings(self._database).items():
            path = self._directory / file
            replaced = path.is_file() and sha256_of(path) == version.sha256
            with self._database:
                (catalog.was_replaced if replaced else catalog.was_not_replaced)(self._database, file)
        self._cancel(RECORDS, catalog.planned(self._database), "sealing")
        self._cancel(FEEDBACK, catalog.planned(self._database, catalog.FEEDBACK), "feedback_sealing")

    def _cancel(self, table: SegmentKind, plan: tuple[int, int] | None, noted_in: str) -> None:
        """Undoes a sealing that a crash interrupted: what it wrote may hold what is to be erased."""
        own = catalog.writer_id(self._database)
        for file in list(listed(self._directory, table.folder)):
            place = place_of(file, table.folder)
            if place is not None and place.writer == own and place[2:] == plan:
                (self._directory / file).unlink()
                sync_folder((self._directory / file).parent)
        with self._database:
            self._database.execute(f"DELETE FROM {noted_in}")

    def _found_in(self, path: Path, table: SegmentKind) -> set[Key]:
        keys = set(matching_rows(path, self._match, self._keys if table is FEEDBACK else set()))
        if table is RECORDS:
            self._keys |= keys
        return keys

    def _spool_rows(self) -> Iterator[int]:
        """Ordinals of the records to remove."""
        columns = "ordinal, sha256, record, principal, request_id, attempt"
        by_id = self._match.request_id is not None
        where = "request_id = ?" if by_id else "? IS NULL"
        decoder = msgspec.msgpack.Decoder(_Tagged)
        path, wanted = self._directory / SPOOL_NAME, (self._match.request_id,)
        for row in self._database.execute(f"SELECT {columns} FROM records WHERE {where} ORDER BY ordinal", wanted):
            if not self._match.may_be_of(row[3]):
                continue
            if by_id or self._match.has(unpack_fields(StoredRow(*row[:3]), decoder.decode, path).tags):
                self._keys.add(row[3:])
                yield row[0]

    def _find_feedback(self, copies: PublishedCopies | None) -> _Feedback:
        found = _Feedback(self._segments(FEEDBACK), self._only_there(copies, FEEDBACK))
        for row in self._database.execute("SELECT ordinal, sha256, feedback FROM feedback"):
            one = unpack_feedback(*row)
            said = self._match.has(one.tags) and self._match.may_be_of(one.principal)
            about = (one.principal, one.request_id, one.attempt)
            if said or self._match.is_of(*about[:2]) or about in self._keys:
                found.spool.add((one.principal, one.feedback_id, row[0]))
        return found

    def _whose(self, feedback: _Feedback) -> list[str]:
        """Who made what is going to be erased. Raises `ConfigError` when an id would erase that of several callers."""
        found = {key[0] for key in chain(self._keys, feedback.keys())}
        if self._match.request_id is not None:
            remembered = "SELECT DISTINCT principal FROM sealed WHERE request_id = ?"
            known = (row[0] for row in self._database.execute(remembered, (self._match.request_id,)))
            found |= {principal for principal in known if self._match.may_be_of(principal)}
            if len(found) > 1:
                names = ", ".join(repr(principal) for principal in sorted(found))
                raise ConfigError(f"erase: several callers used this request id: {names}; say whose with --principal")
        return sorted(found)

    def _erase_feedback(self, copies: PublishedCopies | None, found: _Feedback) -> None:
        for file, keys in found.segments.items():
            self._rewrite(file, FEEDBACK, keys)
        for file, keys in found.only_there.items():
            if copies is not None:
                copies.rewrite(file, FEEDBACK, keys)
        self._delete("DELETE FROM feedback WHERE ordinal = ?", ((key[2],) for key in found.spool))

    def _rewrite(self, file: str, table: SegmentKind, keys: set[Key]) -> None:
        path = self._directory / file
        own = catalog.is_in_catalog(self._database, file)
        with rewrite(path, table, keys) as version:
            if own:
                self._forget(keys, table)
                with self._database:
                    catalog.will_be(self._database, file, version)
        if own:
            with self._database:
                catalog.was_replaced(self._database, file)
        self._rewritten.append(file)

    def _forget(self, keys: set[Key], table: SegmentKind = RECORDS) -> None:
        """Drops what was kept to recognise retries."""
        if table is FEEDBACK:
            statement = "DELETE FROM sealed_feedback WHERE principal = ? AND feedback_id = ? AND ordinal = ?"
        else:
            statement = "DELETE FROM sealed WHERE principal = ? AND request_id = ? AND attempt = ?"
        self._delete(statement, keys)

    def _delete(self, statement: str, keys: Iterable[tuple[Any, ...]]) -> None:
        """In transactions of bounded size; what a crash leaves the next run finds again."""
        for some in pieces(keys):
            with self._database:
                self._database.executemany(statement, some)

    def _scrub(self) -> None:
        """Free pages and the write-ahead log may hold what was deleted, also long ago by a sealing."""
        self._database.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._database.execute("VACUUM")
        self._database.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

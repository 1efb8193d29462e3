"""What an erasure does to the published copies of a log.

An object is replaced by one without what was erased, under its own name and in one step: who reads the table meets the
old one or the new one, never both and never neither. (With another name there would be a moment with both, or none.)
The store is asked to replace only the version that was read, so that a late upload of an erasure that was broken off
cannot bring anything back. The description beside it is replaced too; between the two, `bon log verify` of a copy names
the file.

Where the log still has the file, its rewritten content is what is put there. Where it has not, the object is fetched,
searched and rewritten here. Objects of other writers are left alone: their logs erase them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from bon_server.core.errors import LogError
from bon_server.log import catalog, published
from bon_server.log.catalog import Segment, Version
from bon_server.log.publish.store import Object, Store, StoreError
from bon_server.log.remove.rewrite import Key, keys_of, rewrite
from bon_server.log.segments.files import SegmentKind

_FETCHED = ".fetched.parquet.tmp"
"""In the log folder; what a crash leaves of it the next erasure removes."""


class PublishedCopies:
    """Of one log, at one place. `StoreError`s about single objects are collected in `failures`, others are raised."""

    def __init__(self, directory: Path, database: apsw.Connection, store: Store) -> None:
        self._directory = directory
        self._store = store
        self._database = database
        noted = published.files(database, store.uri)
        places = published.places(database)
        if places and not noted:
            raise StoreError("missing", f"{store.uri}: this log was not published there, but to {', '.join(places)}")
        self._noted = frozenset(noted)
        self.replaced: list[str] = []
        """Objects that hold less now."""
        self.failures: list[StoreError] = []
        """Objects that could not be replaced."""

    def only_there(self, table: SegmentKind) -> list[str]:
        """Files of a kind that were published and are no longer here, sorted."""
        here = {one.file for one in self._here()}
        return sorted(file for file in self._noted if file not in here and file.startswith(f"{table.folder}/"))

    def search(self, file: str, found_in: Callable[[Path], set[Key]]) -> set[Key]:
        """What `found_in` finds in an object; nothing when it is not there."""
        with self._fetched(file) as fetched:
            if fetched is None:
                return set()
            path, there = fetched
            try:
                keys = found_in(path)
            except LogError:
                raise StoreError(
                    "conflict", f"{self._store.uri}/{file} cannot be read: what it holds is not known"
                ) from None
            if not keys and _sha256(there.content) != self._described(file)[1].sha256:
                self.failures.append(_changed(self._store, file))
            return keys

    def rewrite(self, file: str, table: SegmentKind, keys: Collection[Key]) -> None:
        """Replaces an object that is no longer here by one without the rows of `keys`."""
        with self._fetched(file) as fetched:
            if fetched is None:
                return
            path, there = fetched
            with rewrite(path, table, keys) as version:
                pass
            beside, described = self._described(file)
            # The description first: until the object is replaced too, the next erasure finds what is to be erased.
            self._describe(described._replace(**Version(*version)._asdict()), beside)
            self._store.replace(file, path.read_bytes(), there)
            self.replaced.append(file)

    def bring_up_to_date(self, content: Callable[[Segment], bytes]) -> None:
        """Replaces the copies of files that are here and look otherwise. content: of such a file."""
        for segment in self._here():
            file = segment.file
            beside = self._store.read(published.description_of(file))
            described = None if beside is None else published.parse(beside.content, f"{self._store.uri}/{file}")
            if described is not None and described.sha256 == segment.sha256:
                continue
            there = self._store.read(file)
            if there is None:
                continue  # it waits to be published
            sha256 = _sha256(there.content)
            known = described is None or sha256 in (described.sha256, segment.sha256)
            if not known and not self._is_older(file, there):
                self.failures.append(_changed(self._store, file))
                continue
            # The object first: until the description is replaced too, the next erasure sees that it is an old one.
            if sha256 != segment.sha256:
                self._store.replace(file, content(segment), there)
                self.replaced.append(file)
            self._describe(segment, beside)

    def _is_older(self, file: str, there: Object) -> bool:
        """Whether an object has every row that the file here has.

        So it is when an erasure was broken off between object and description, and another one went on here.
        """
        with self._as_file(there) as path:
            try:
                return keys_of(path) >= keys_of(self._directory / file)
            except LogError:
                return False

    def _here(self) -> list[Segment]:
        return [one for stream in catalog.STREAMS for one in catalog.segments(self._database, stream=stream)]

    def _described(self, file: str) -> tuple[Object, Segment]:
        name = published.description_of(file)
        beside = self._store.read(name)
        if beside is None:
            raise StoreError("missing", f"{self._store.uri}/{name} is missing")
        return beside, published.parse(beside.content, f"{self._store.uri}/{name}")

    def _describe(self, segment: Segment, beside: Object | None) -> None:
        name, content = published.description_of(segment.file), published.describe(segment)
        if beside is None:
            self._store.put(name, content)
        else:
            self._store.replace(name, content, beside)

    @contextmanager
    def _fetched(self, file: str) -> Iterator[tuple[Path, Object] | None]:
        there = self._store.read(file)
        if there is None:
            yield None
            return
        with self._as_file(there) as path:
            yield path, there

    @contextmanager
    def _as_file(self, there: Object) -> Iterator[Path]:
        path = self._directory / _FETCHED
        try:
            path.touch(mode=0o600)
            path.write_bytes(there.content)
            yield path
        finally:
            path.unlink(missing_ok=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _changed(store: Store, file: str) -> StoreError:
    return StoreError("conflict", f"{store.uri}/{file} is not what was published: look at it; it is left as it is")

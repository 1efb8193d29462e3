"""`bon log verify`: reads everything there is and names what is wrong, by kind, file and row.

    spool_damaged          SQLite finds damage in its file
    row_damaged            a row of the spool does not match its sha256, or is no record
    row_unfit              a row differs from the copies of its fields, or fits no segment
    segment_missing        a registered or described file is not there
    segment_unregistered   the folder's own writer has no record of having made it
    segment_size           not as long as registered
    segment_changed        not the sha256 that was registered
    segment_unreadable     a row group, or the whole file, is no Parquet any more
    segment_rows           not as many rows as registered
    statistics             a row group's statistics are not those of its rows
    ordinal                out of its file's range, or met before
    date                   a record is in another date's folder
    duplicate_id           principal, request_id and attempt were met before, in the time of their replay
    candidates             not in index order, or not as many as asked for
    reward                 a scored candidate without a finite reward, or another one with a reward
    selection              the selected candidate is not there, or not scored
    foreign_file           a file that is no part of a log
    description_damaged    what was put beside a published segment cannot be read
    snapshot_damaged       no snapshot any more
    snapshot_segment       a snapshot names a segment that is missing or has changed

Temporary files, and files of a sealing that is under way or was interrupted, are notes and no problems: the next
sealing replaces them. May run while a server writes; what is sealed meanwhile is for the next run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NotRequired, TypedDict

from bon_server.errors import LogError
from bon_server.log import snapshot
from bon_server.log.columns import to_batch
from bon_server.log.database import SPOOL_NAME, StoredRow, row_of, unpack
from bon_server.log.reader import LogReader
from bon_server.log.record import Record, decode
from bon_server.log.register import Segment
from bon_server.log.segment_reader import Part
from bon_server.log.segments import FOLDER, place_of
from bon_server.log.verify_records import Seen, record_problems
from bon_server.log.verify_segment import segment_rows
from bon_server.log.whole_file import sha256_of

MAX_PROBLEMS = 10_000
_PAGE = "SELECT ordinal, sha256, record, principal, request_id, attempt, kind, outcome FROM records"
_OWN_FILES = re.compile(
    rf"{re.escape(SPOOL_NAME)}(-wal|-shm)?|writer\.lock|rejected/[^/]+|feedback/.+|{snapshot.FOLDER}/[^/]+\.json"
)
_DESCRIPTION = re.compile(rf"{FOLDER}/[^/]+/[^/]+/_\d+-\d+\.json")


class Problem(TypedDict):
    """One thing that is wrong."""

    kind: str
    file: str
    """Relative to the log folder."""
    row: NotRequired[int]
    """Ordinal of the record."""
    detail: str
    """Without content."""


class Report(TypedDict):
    """The document of `bon log verify --json`."""

    ok: bool
    problems: list[Problem]
    """At most `MAX_PROBLEMS`."""
    unlisted: int
    """Problems beyond those."""
    notes: list[Problem]
    """What is worth knowing but not wrong."""
    records: int
    """Records that were checked."""
    segments: int


def verify(directory: Path) -> Report:
    """Checks a log. Raises `LogError` when there is none."""
    files = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    damaged: list[LogError] = []
    try:
        reader = LogReader(directory, damaged.append)
    except LogError as error:
        if not (directory / SPOOL_NAME).exists():
            raise
        problem = Problem(kind="spool_damaged", file=SPOOL_NAME, detail=str(error))
        return Report(ok=False, problems=[problem], unlisted=0, notes=[], records=0, segments=0)
    with reader, closing(Seen()) as seen:
        return _Verification(directory, reader, seen, files).run(damaged)


def _without_segment(files: list[str]) -> dict[str, str]:
    """Descriptions of published segments that are not there, with the names of these segments."""
    described = {
        re.sub(r"/_([^/]+)\.json$", r"/\1.parquet", file): file for file in files if _DESCRIPTION.fullmatch(file)
    }
    return {description: file for file, description in described.items() if file not in set(files)}


class _Verification:
    """One run."""

    def __init__(self, directory: Path, reader: LogReader, seen: Seen, files: list[str]) -> None:
        self._directory = directory
        self._reader = reader
        self._seen = seen
        self._files = files
        self._registered = {segment.file: segment for segment in reader.segments} | reader.described
        self._descriptions = _without_segment(files)
        self._sha256: dict[str, str] = {}
        self._report = Report(ok=True, problems=[], unlisted=0, notes=[], records=0, segments=len(reader.parts))

    def run(self, damaged: list[LogError]) -> Report:
        """Checks everything and returns what was found. damaged: descriptions of published segments."""
        for error in damaged:
            self._add("description_damaged", FOLDER, str(error))
        self._check_database()
        self._check_files()
        for writer, part in self._reader.parts_by_writer():
            self._check_segment(writer, part, self._registered.get(self._name(part.path)))
        self._check_spool()
        for path in snapshot.snapshot_files(self._directory):
            self._check_snapshot(path)
        return self._report

    def _add(self, kind: str, file: str, detail: str, row: int | None = None) -> None:
        self._report["ok"] = False
        if len(self._report["problems"]) == MAX_PROBLEMS:
            self._report["unlisted"] += 1
        elif row is None:
            self._report["problems"].append(Problem(kind=kind, file=file, detail=detail))
        else:
            self._report["problems"].append(Problem(kind=kind, file=file, row=row, detail=detail))

    def _name(self, path: Path) -> str:
        return path.relative_to(self._directory).as_posix()

    def _check_database(self) -> None:
        try:
            findings = [row[0] for row in self._reader.database("PRAGMA integrity_check(100)")]
        except LogError as error:
            findings = [str(error)]
        for finding in findings:
            if finding != "ok":
                self._add("spool_damaged", SPOOL_NAME, str(finding))

    def _check_files(self) -> None:
        plan = self._reader.plan
        for file in self._files:
            place = place_of(file)
            if file.rpartition("/")[2].startswith(".") and file.endswith(".tmp"):
                self._note("temporary_file", file, "left by a crash, or being written just now")
            elif place is None:
                if file in self._descriptions:
                    self._add("segment_missing", self._descriptions[file], "described, but not there")
                elif not (_OWN_FILES.fullmatch(file) or _DESCRIPTION.fullmatch(file)):
                    self._add("foreign_file", file, "no part of a log")
            elif place.writer == self._reader.own_writer and file not in self._registered:
                if file in self._reader.removed:
                    self._note("removed_segment", file, "published, and no part of this log; the next start removes it")
                elif plan == (place.first_ordinal, place.last_ordinal):
                    self._note("interrupted_sealing", file, "its rows are in the spool; the next sealing completes it")
                else:
                    self._add("segment_unregistered", file, "the log's own writer did not register it; it is not read")

    def _note(self, kind: str, file: str, detail: str) -> None:
        self._report["notes"].append(Problem(kind=kind, file=file, detail=detail))

    def _check_segment(self, writer: str, part: Part, registered: Segment | None) -> None:
        file = self._name(part.path)
        if not part.path.is_file():
            self._add("segment_missing", file, "registered, but not there")
            return
        self._sha256[file] = sha256_of(part.path)
        size = part.path.stat().st_size
        if registered is not None and size != registered.bytes:
            self._add("segment_size", file, f"{size} bytes long, not {registered.bytes}")
        elif registered is not None and self._sha256[file] != registered.sha256:
            self._add("segment_changed", file, f"its sha256 is {self._sha256[file]}, not {registered.sha256}")
        rows = 0
        last_of_group = part.first_ordinal - 1
        for group in segment_rows(part):
            for kind, detail in group.problems:
                self._add(kind, file, detail)
            for ordinal, found in group.rows:
                rows += 1
                if isinstance(found, LogError):
                    self._add("segment_unreadable", file, str(found), ordinal)
                    continue
                if not max(part.first_ordinal, last_of_group + 1) <= ordinal <= part.last_ordinal:
                    self._add("ordinal", file, "out of the file's range, or of order", ordinal)
                if found.created_at.date().isoformat() != part.date:
                    self._add("date", file, f"it began on {found.created_at.date()}", ordinal)
                until_us = None if registered is None else registered.replayable_until_us
                self._check_record(writer, file, ordinal, found, until_us)
            last_of_group = max([last_of_group, *(ordinal for ordinal, _ in group.rows)])
        if registered is not None and rows != registered.rows:
            self._add("segment_rows", file, f"{rows} rows could be read, not {registered.rows}")

    def _check_record(self, writer: str, file: str, ordinal: int, record: Record, until_us: int | None) -> None:
        self._report["records"] += 1
        for kind, detail in record_problems(record):
            self._add(kind, file, detail, ordinal)
        for kind, detail in self._seen.problems(writer, ordinal, record, until_us):
            self._add(kind, file, detail, ordinal)

    def _check_spool(self) -> None:
        writer = self._reader.own_writer
        try:
            for row in self._spool_rows():
                self._check_row(writer, row)
        except LogError as error:
            self._add("spool_damaged", SPOOL_NAME, str(error))

    def _spool_rows(self) -> Iterator[tuple[StoredRow, tuple[object, ...]]]:
        after = 0
        while after < self._reader.last_ordinal:
            page = f"{_PAGE} WHERE ordinal > ? AND ordinal <= ? ORDER BY ordinal LIMIT 64"
            rows = self._reader.database(page, after, self._reader.last_ordinal)
            for row in rows:
                yield StoredRow(*row[:3]), row[3:]
            after = rows[-1][0] if rows else self._reader.last_ordinal

    def _check_row(self, writer: str, row: tuple[StoredRow, tuple[object, ...]]) -> None:
        stored, copies = row
        try:
            record = unpack(stored, decode, self._reader.spool_file)
        except LogError as error:
            self._add("row_damaged", SPOOL_NAME, str(error), stored.ordinal)
            return
        try:
            to_batch([record])
            if tuple(row_of(record)[:5]) != copies:
                self._add("row_unfit", SPOOL_NAME, "its columns are not those of its record", stored.ordinal)
        except ValueError as error:
            self._add("row_unfit", SPOOL_NAME, str(error), stored.ordinal)
        self._check_record(writer, SPOOL_NAME, stored.ordinal, record, None)

    def _check_snapshot(self, path: Path) -> None:
        file = self._name(path)
        try:
            pinned = snapshot.read_snapshot(path)["segments"]
        except LogError as error:
            self._add("snapshot_damaged", file, str(error))
            return
        for one in pinned:
            target = self._directory / one["file"]
            if not target.is_file():
                self._add("snapshot_segment", file, f"{one['file']} is missing")
            elif self._digest(one["file"]) != one["sha256"]:
                self._add("snapshot_segment", file, f"{one['file']} has changed: its sha256 is not {one['sha256']}")

    def _digest(self, file: str) -> str:
        if file not in self._sha256:
            self._sha256[file] = sha256_of(self._directory / file)
        return self._sha256[file]

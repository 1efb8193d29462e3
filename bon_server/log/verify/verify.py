"""`bon log verify`: reads everything there is and names what is wrong, by kind, file and row.

    spool_damaged          SQLite finds damage in its file
    row_damaged            a row of the spool does not match its sha256, or is no record
    row_unfit              a row differs from the copies of its fields, or fits no segment
    feedback_damaged       a row of the spool's feedback does not match its sha256, or is no observation
    feedback_unfit         such a row differs from the copies of its fields
    segment_missing        a file of the catalog, or one with a description, is not there
    segment_unregistered   the folder's own writer has no record of having made it
    segment_size           not as long as the catalog says
    segment_changed        not the sha256 that the catalog has
    segment_unreadable     a row group, or the whole file, is no Parquet any more
    segment_rows           not as many rows as the catalog says
    statistics             a row group's statistics are not those of its rows
    ordinal                out of its file's range, or met before
    date                   a record is in another date's folder
    duplicate_id           principal, request_id and attempt (feedback: principal and feedback_id) were met before, in
                           the time of their replay
    candidates             not in index order, or not as many as asked for
    reward                 a scored candidate without a finite reward, or another one with a reward
    selection              the selected candidate is not there, or not scored
    foreign_file           a file that is no part of a log
    description_damaged    what was put beside a published segment cannot be read
    snapshot_damaged       no snapshot any more
    snapshot_segment       a snapshot names a segment that is missing or has changed
    scores_damaged         a file of added scores, or what says whose they are, cannot be read
    scores_unfit           a row of them is out of its file's range, met before or of another record than the log's,
                           or a reward does not fit its status

Segments are those of records and of feedback. Notes and no problems are: temporary files; files of a sealing or an
erasure that is under way or was interrupted (the next one completes it); expired files that could not be removed yet;
snapshots that an erasure made stale. May run while a server writes; what is sealed meanwhile is for the next run.

`Report` is the document of `bon log verify --json`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NotRequired, TypedDict, TypeVar

import pyarrow as pa

from bon_server.core.errors import LogError
from bon_server.log.catalog import Segment, Version
from bon_server.log.feedback import Feedback
from bon_server.log.read import snapshot
from bon_server.log.read.reader import LogReader
from bon_server.log.record import Record
from bon_server.log.scores.files import CHANGES_NAME, MODEL_NAME
from bon_server.log.scores.files import FOLDER as SCORES_FOLDER
from bon_server.log.segments.feedback_columns import FEEDBACK
from bon_server.log.segments.feedback_columns import from_batch as to_feedback
from bon_server.log.segments.files import RECORDS, SegmentKind, place_of
from bon_server.log.segments.reader import SegmentView
from bon_server.log.spool.database import SPOOL_NAME
from bon_server.log.verify.feedback import Known, described_feedback, feedback_parts, feedback_rows, read_catalog
from bon_server.log.verify.rows import RowGroup, SeenRows, record_problems, segment_rows, spool_records, to_records
from bon_server.log.verify.scores import scores_problems
from bon_server.system.files import sha256_of

MAX_PROBLEMS = 10_000


class LogProblem(TypedDict):
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
    problems: list[LogProblem]
    """At most `MAX_PROBLEMS`."""
    unlisted: int
    """Problems beyond those."""
    notes: list[LogProblem]
    """What is worth knowing but not wrong."""
    records: int
    """Records that were checked."""
    feedback: int
    """Observations that were checked."""
    segments: int


_OWN_FILES = re.compile(
    rf"{re.escape(SPOOL_NAME)}(-wal|-shm)?|writer\.lock|rejected/[^/]+|{snapshot.FOLDER}/[^/]+\.json"
    rf"|{SCORES_FOLDER}/{CHANGES_NAME}|{SCORES_FOLDER}/[^/]+/({MODEL_NAME}|writer\.lock)"
    rf"|{SCORES_FOLDER}/[^/]+/writer=[^/]+/\d+-\d+\.parquet"
)
_DESCRIPTION = re.compile(rf"({RECORDS.folder}|{FEEDBACK.folder})/[^/]+/[^/]+/_\d+-\d+\.json")
Registration = Segment | Version | None
Row = TypeVar("Row", Record, Feedback)


def verify(directory: Path) -> Report:
    """Checks a log. Raises `LogError` when there is none."""
    files = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    damaged: list[LogError] = []
    try:
        reader = LogReader(directory, damaged.append)
    except LogError as error:
        if not (directory / SPOOL_NAME).exists():
            raise
        problem = LogProblem(kind="spool_damaged", file=SPOOL_NAME, detail=str(error))
        return Report(ok=False, problems=[problem], unlisted=0, notes=[], records=0, feedback=0, segments=0)
    with (
        reader,
        closing(SeenRows("principal, request_id and attempt")) as seen,
        closing(SeenRows("principal and feedback_id")) as seen_feedback,
    ):
        return _Verification(directory, reader, seen, seen_feedback, files).run(damaged)


def _without_segment(files: list[str]) -> dict[str, str]:
    """Descriptions of published segments that are not there, with the names of these segments."""
    described = {
        re.sub(r"/_([^/]+)\.json$", r"/\1.parquet", file): file for file in files if _DESCRIPTION.fullmatch(file)
    }
    return {description: file for file, description in described.items() if file not in set(files)}


class _Verification:
    """One run."""

    def __init__(
        self, directory: Path, reader: LogReader, seen: SeenRows, seen_feedback: SeenRows, files: list[str]
    ) -> None:
        self._directory = directory
        self._reader = reader
        self._seen = seen
        self._seen_feedback = seen_feedback
        self._files = files
        self._known = Known(own_writer=reader.own_writer)
        self._in_catalog = {segment.file: segment for segment in reader.segments} | reader.described
        self._descriptions = _without_segment(files)
        self._sha256: dict[str, str] = {}
        self._report = Report(
            ok=True, problems=[], unlisted=0, notes=[], records=0, feedback=0, segments=len(reader.parts)
        )

    def run(self, damaged: list[LogError]) -> Report:
        """Checks everything and returns what was found. damaged: descriptions of published segments."""
        self._read_catalog()
        for error in damaged:
            self._add("description_damaged", RECORDS.folder, str(error))
        self._check_database()
        self._check_files()
        for writer, part in self._reader.parts_by_writer():
            self._check_segment(writer, part, RECORDS, to_records, self._check_record)
        self._check_spool()
        for writer, part in feedback_parts(self._directory, self._known):
            self._check_segment(writer, part, FEEDBACK, to_feedback, self._check_feedback)
        self._check_spool_feedback()
        for path in snapshot.snapshot_files(self._directory):
            self._check_snapshot(path)
        for found in scores_problems(self._directory, self._reader):
            self._add(*found)
        return self._report

    def _read_catalog(self) -> None:
        try:
            self._known = read_catalog(self._directory)
        except LogError as error:
            self._add("spool_damaged", SPOOL_NAME, str(error))
        self._in_catalog |= self._known.feedback
        self._in_catalog |= described_feedback(self._directory, self._known.own_writer, self._description_damaged)

    def _description_damaged(self, error: LogError) -> None:
        self._add("description_damaged", FEEDBACK.folder, str(error))

    def _add(self, kind: str, file: str, detail: str, row: int | None = None) -> None:
        self._report["ok"] = False
        if len(self._report["problems"]) == MAX_PROBLEMS:
            self._report["unlisted"] += 1
        elif row is None:
            self._report["problems"].append(LogProblem(kind=kind, file=file, detail=detail))
        else:
            self._report["problems"].append(LogProblem(kind=kind, file=file, row=row, detail=detail))

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
        plans = {RECORDS.folder: self._reader.plan, FEEDBACK.folder: self._known.plan}
        for file in self._files:
            place = place_of(file) or place_of(file, FEEDBACK.folder)
            if file.rpartition("/")[2].startswith(".") and file.endswith(".tmp"):
                self._note("temporary_file", file, "left by a crash, or being written just now")
            elif place is None:
                if file in self._descriptions:
                    self._add("segment_missing", self._descriptions[file], "described, but not there")
                elif not (_OWN_FILES.fullmatch(file) or _DESCRIPTION.fullmatch(file)):
                    self._add("foreign_file", file, "no part of a log")
            elif place.writer == self._reader.own_writer and file not in self._in_catalog:
                if file in self._reader.removed:
                    self._note("removed_segment", file, "published, and no part of this log; the next start removes it")
                elif plans.get(file.partition("/")[0]) == (place.first_ordinal, place.last_ordinal):
                    self._note("interrupted_sealing", file, "its rows are in the spool; the next sealing completes it")
                elif file in self._known.expired:
                    self._note("expired_file", file, "out of the log; the next `bon log expire` removes it")
                else:
                    self._add("segment_unregistered", file, "the log's own writer did not enter it; it is not read")

    def _note(self, kind: str, file: str, detail: str) -> None:
        self._report["notes"].append(LogProblem(kind=kind, file=file, detail=detail))

    def _check_segment(
        self,
        writer: str,
        part: SegmentView,
        table: SegmentKind,
        convert: Callable[[pa.RecordBatch], list[tuple[int, Row]]],
        check: Callable[[str, str, int, Row, int | None], None],
    ) -> None:
        file = self._name(part.path)
        segment = self._in_catalog.get(file)
        if not part.path.is_file():
            if not self._expired_meanwhile(file):
                self._add("segment_missing", file, "in the catalog, but not there")
            return
        expected = self._check_file(file, segment)
        until_us = None if segment is None else segment.replayable_until_us
        rows = 0
        last_of_group = part.first_ordinal - 1
        group: RowGroup[Row]
        for group in segment_rows(part, table.schema, convert):
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
                check(writer, file, ordinal, found, until_us)
            last_of_group = max([last_of_group, *(ordinal for ordinal, _ in group.rows)])
        if expected is not None and rows != expected.rows:
            self._add("segment_rows", file, f"{rows} rows could be read, not {expected.rows}")

    def _check_file(self, file: str, segment: Segment | None) -> Registration:
        """Compares length and digest with those of the catalog; returns that, or what an erasure noted instead."""
        path = self._directory / file
        self._sha256[file] = sha256_of(path)
        size = path.stat().st_size
        noted = self._known.rewriting.get(file)
        if noted is not None:
            self._note("interrupted_erasure", file, "run the same `bon log erase` again")
        expected: Registration = noted if noted is not None and self._sha256[file] == noted.sha256 else segment
        if expected is not None and size != expected.bytes:
            self._add("segment_size", file, f"{size} bytes long, not {expected.bytes}")
        elif expected is not None and self._sha256[file] != expected.sha256:
            self._add("segment_changed", file, f"its sha256 is {self._sha256[file]}, not {expected.sha256}")
        return expected

    def _expired_meanwhile(self, file: str) -> bool:
        return file in self._in_catalog and file in read_catalog(self._directory).expired

    def _check_record(self, writer: str, file: str, ordinal: int, record: Record, until_us: int | None) -> None:
        self._report["records"] += 1
        for kind, detail in record_problems(record):
            self._add(kind, file, detail, ordinal)
        row_id = (record.principal, record.request_id, str(record.attempt))
        for kind, detail in self._seen.problems(writer, ordinal, row_id, record.created_at, until_us):
            self._add(kind, file, detail, ordinal)

    def _check_feedback(self, writer: str, file: str, ordinal: int, one: Feedback, until_us: int | None) -> None:
        self._report["feedback"] += 1
        row_id = (one.principal, one.feedback_id)
        for kind, detail in self._seen_feedback.problems(writer, ordinal, row_id, one.created_at, until_us):
            self._add(kind, file, detail, ordinal)

    def _check_spool_feedback(self) -> None:
        try:
            for ordinal, found, fits in feedback_rows(self._directory):
                if isinstance(found, LogError):
                    self._add("feedback_damaged", SPOOL_NAME, str(found), ordinal)
                    continue
                if not fits:
                    self._add("feedback_unfit", SPOOL_NAME, "its columns are not those of its observation", ordinal)
                self._check_feedback(self._reader.own_writer, SPOOL_NAME, ordinal, found, None)
        except LogError as error:
            self._add("spool_damaged", SPOOL_NAME, str(error))

    def _check_spool(self) -> None:
        try:
            for ordinal, found, unfit in spool_records(self._reader):
                if isinstance(found, LogError):
                    self._add("row_damaged", SPOOL_NAME, str(found), ordinal)
                    continue
                if unfit is not None:
                    self._add("row_unfit", SPOOL_NAME, unfit, ordinal)
                self._check_record(self._reader.own_writer, SPOOL_NAME, ordinal, found, None)
        except LogError as error:
            self._add("spool_damaged", SPOOL_NAME, str(error))

    def _check_snapshot(self, path: Path) -> None:
        file = self._name(path)
        try:
            read = snapshot.read_snapshot(path)
        except LogError as error:
            self._add("snapshot_damaged", file, str(error))
            return
        stale = read.get("stale", [])
        for erased_from in stale:
            self._note("snapshot_stale", file, f"records of {erased_from} were erased")
        for one in read["segments"]:
            target = self._directory / one["file"]
            if not target.is_file():
                self._add("snapshot_segment", file, f"{one['file']} is missing")
            elif one["file"] not in stale and self._digest(one["file"]) != one["sha256"]:
                self._add("snapshot_segment", file, f"{one['file']} has changed: its sha256 is not {one['sha256']}")

    def _digest(self, file: str) -> str:
        if file not in self._sha256:
            self._sha256[file] = sha256_of(self._directory / file)
        return self._sha256[file]

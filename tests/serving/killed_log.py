"""A log that servers are killed on, with its retention and its published copies, against what clients were told.

The retention removes files for good, so each sealed file is kept aside as a hard link while no server runs. A file
that is gone must be one that the catalog says has expired, and its rows still count: an acknowledged answer is in the
log or in an expired file. An id may have two rows only where the server had a right to sample again: the older row had
expired, or its replay window was over.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
from bon.v1 import bon_pb2 as pb

from bon_server.core.types import Outcome
from bon_server.log import catalog, published
from bon_server.log.catalog import Segment
from bon_server.log.read.feedback import FeedbackReader
from bon_server.log.read.reader import LogReader
from bon_server.log.spool.database import SPOOL_NAME, open_for_reading
from bon_server.log.verify.verify import verify
from bon_server.loop.soak.ledger import Winner

ANSWERED = (Outcome.OK, Outcome.PARTIAL)


@dataclass(slots=True)
class Told:
    """What clients know: each acknowledgement."""

    answers: dict[str, Winner] = field(default_factory=dict)
    """By request id; the latest, where an id was sampled again."""
    feedback: set[str] = field(default_factory=set)
    """Ids of acknowledged observations."""
    unknown: list[str] = field(default_factory=list)
    """Request ids on which an observation was refused with NOT_FOUND."""
    changed: list[str] = field(default_factory=list)
    """Request ids whose replayed answer was another one than before."""

    def answered(self, answer: pb.GenerateResponse) -> None:
        """An answer has reached its caller. Whether it might be sampled again is judged by the rows of the log."""
        winner = Winner.of(answer.best.index, answer.best.text)
        if answer.replayed and self.answers.get(answer.request_id, winner) != winner:
            self.changed.append(answer.request_id)
        self.answers[answer.request_id] = winner


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True)
class _Row:
    """What is read of a record; `LogReader.fields` takes it as a struct."""

    request_id: str
    created_at: datetime
    outcome: Outcome
    selected_index: int | None
    candidates: tuple[_Text, ...]


class Answered(NamedTuple):
    """One answer in the log, or in a file that was."""

    request_id: str
    created_at: datetime
    """When its request began."""
    ordinal: int
    winner: Winner
    expired: bool


class State(NamedTuple):
    """The catalog as a kill left it."""

    segments: Sequence[Segment] = ()
    """Of records and of feedback, that are in the log."""
    expired: Sequence[str] = ()
    """Files that the retention took out of it, since the log began."""
    published: Sequence[str] = ()
    plan: tuple[int, int] | None = None
    """Of the sealing that was under way."""


class KilledLog:
    """One log and the folder that its segments are published to. Call its methods while no server runs."""

    def __init__(self, folder: Path, replay_window: timedelta) -> None:
        self.folder = folder / "log"
        self.published = folder / "published"
        self._kept = folder / "kept"
        self._window = replay_window
        self._gone: dict[str, list[Answered]] = {}
        """Rows of the files of records that have expired, which do not change any more."""
        self._gone_feedback: dict[str, list[str]] = {}

    def state(self) -> State:
        """Reads the catalog; a log that was never begun has nothing in it."""
        if not (self.folder / SPOOL_NAME).is_file():
            return State()
        with closing(open_for_reading(self.folder / SPOOL_NAME)) as reading:
            if reading.pragma("user_version") < catalog.FIRST_LAYOUT:  # killed in the middle of its first start
                return State()
            return State(
                [one for stream in catalog.STREAMS for one in catalog.segments(reading, stream=stream)],
                catalog.expired(reading),
                published.files(reading, self.published.as_uri()),
                catalog.planned(reading),
            )

    def keep(self, state: State) -> None:
        """Links each sealed file aside, and checks what is gone and what was published against what was kept."""
        for one in state.segments:
            source, aside = self.folder / one.file, self._kept / one.file
            if not aside.exists():
                aside.parent.mkdir(parents=True, exist_ok=True)
                os.link(source, aside)
        for file in state.expired:
            assert (self._kept / file).exists(), f"{file} was sealed and expired within one life"
        for file in state.published:
            there, kept = self.published / file, self._kept / file
            assert there.is_file(), f"{file} is noted as published and is not there"
            assert kept.exists(), f"{file} is published and was never in the log"
            assert _digest(there) == _digest(kept), f"{file} was published with other content"

    def check(self, told: Told) -> Counter[str]:
        """The log is whole, and every acknowledgement is kept, once. Returns how much was held against what."""
        report = verify(self.folder)
        assert report["ok"], report["problems"][:5]
        state = self.state()
        self.keep(state)
        answers, expired = self._answers(state), set(state.expired)
        lost = [one for one, winner in told.answers.items() if winner not in {row.winner for row in answers[one]}]
        assert not lost, f"acknowledged and lost, or with another winner: {lost[:5]}"
        doubled = [one for one, rows in answers.items() if self._sampled_without_right(rows)]
        assert not doubled, f"in the log twice: {doubled[:5]}"
        assert not told.changed, f"replayed with another answer: {told.changed[:5]}"
        refused = [one for one in told.unknown if not any(row.expired for row in answers[one])]
        assert not refused, f"observations refused on requests that are in the log: {refused[:5]}"
        seen = self._feedback(expired)
        assert not told.feedback - seen.keys(), f"lost observations: {sorted(told.feedback - seen.keys())[:5]}"
        twice = [one for one, times in seen.items() if times > 1]
        assert not twice, f"observations that are in the log twice: {twice[:5]}"
        rows = [row for each in answers.values() for row in each]
        return Counter(
            acknowledged=len(told.answers),
            rows=len(rows),
            sampled_again=len(rows) - len(answers),
            in_expired_files=sum(row.expired for row in rows),
            feedback=len(told.feedback),
            segments_in_log=len(state.segments),
            segments_expired=len(state.expired),
            segments_published=len(state.published),
        )

    def check_published(self, state: State) -> None:
        """After an orderly end: all that is sealed is published, and what is published reads as a log by itself."""
        missing = {one.file for one in state.segments} - set(state.published)
        assert not missing, f"sealed and not published by the end: {sorted(missing)[:5]}"
        if state.published:
            # Copies of what has expired stay there, so that ids that were sampled again are there twice.
            problems = [one for one in verify(self.published)["problems"] if one["kind"] != "duplicate_id"]
            assert not problems, problems[:5]

    def _answers(self, state: State) -> defaultdict[str, list[Answered]]:
        """Every answer by request id, in commit order."""
        for file in state.expired:
            if file.startswith("segments/") and file not in self._gone:
                self._gone[file] = list(_rows_of(self._kept / file))
        with LogReader(self.folder) as reader:
            rows = [(place.ordinal, row) for place, row in reader.fields(_Row) if row.outcome in ANSWERED]
        here = [_answered(row, ordinal, expired=False) for ordinal, row in rows]
        answers: defaultdict[str, list[Answered]] = defaultdict(list)
        gone = (row for rows in self._gone.values() for row in rows)
        for row in sorted((*gone, *here), key=lambda row: row.ordinal):
            answers[row.request_id].append(row)
        ordinals = Counter(row.ordinal for rows in answers.values() for row in rows)
        assert not ordinals or max(ordinals.values()) == 1, "a row is in two places"
        return answers

    def _sampled_without_right(self, rows: list[Answered]) -> bool:
        """Whether a server that had to replay an answer made another one."""
        return any(not old.expired and new.created_at - old.created_at < self._window for old, new in pairwise(rows))

    def _feedback(self, expired: set[str]) -> Counter[str]:
        for file in expired:
            if file.startswith("feedback/") and file not in self._gone_feedback:
                column = pq.read_table(self._kept / file, columns=["feedback_id"])["feedback_id"]
                self._gone_feedback[file] = column.to_pylist()
        with FeedbackReader(self.folder) as reader:
            seen = Counter(one.feedback_id for one in reader.all())
        return seen + Counter(one for ids in self._gone_feedback.values() for one in ids)


def _answered(row: _Row, ordinal: int, expired: bool) -> Answered:
    assert row.selected_index is not None, f"{row.request_id} is answered without a winner"
    winner = Winner.of(row.selected_index, row.candidates[row.selected_index].text)
    return Answered(row.request_id, row.created_at, ordinal, winner, expired)


def _rows_of(file: Path) -> Iterator[Answered]:
    """Of a file that has expired: read by Arrow alone, since it is no part of the log any more."""
    columns = ["request_id", "created_at", "ordinal", "outcome", "selected_index", "candidates"]
    for row in pq.ParquetFile(file).read(columns=columns).to_pylist():
        outcome = Outcome(row.pop("outcome"))
        if outcome in ANSWERED:
            candidates, ordinal = tuple(_Text(one["text"]) for one in row.pop("candidates")), row.pop("ordinal")
            yield _answered(_Row(**row, outcome=outcome, candidates=candidates), ordinal, expired=True)


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()

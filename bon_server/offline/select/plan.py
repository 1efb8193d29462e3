"""What a selection reads and how the work is divided: made at the start, the same for every task.

    gather    a task for some files     small columns ──► filters ──► candidates, partitioned by prompt
    choose    a task for some prompts   whole prompts ──► rule ──► picks, partitioned by place in the log
    export    a task for a file         picks in log order ──► their texts ──► part-00000.jsonl

Tasks are pure functions of the plan and their number. Each writes files into the work folder and, last, a summary;
a task that has one is not done again. How many tasks there are, and in which order they run, changes no byte of what
comes out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bon_server.log.scores.files import ScoreFile
from bon_server.log.segments.reader import SegmentView
from bon_server.log.segments.where import EVERYTHING, Where
from bon_server.offline.select.options import Filters, Written
from bon_server.offline.select.rows import FORMS, Rows
from bon_server.offline.select.rules import Rule

TASK_RECORDS = 1 << 16
"""About how many records a task of `gather` or `choose` is for."""
BUCKET_RECORDS = 1 << 13
"""About how many records there are to a partition by prompt: what is held in memory at a time."""
RANGE_ORDINALS = 1 << 14
"""Ordinals of a writer in a partition by place."""


@dataclass(frozen=True, slots=True)
class File:
    """A file that is read: a segment, or rows of the spool as they were at the start."""

    part: SegmentView
    writer: int
    """Counted through all logs."""
    name: str
    """In the manifest."""
    rows: int | None
    sha256: str | None
    """With `rows` as in the catalog; None: not known yet."""
    frozen: bool = False
    """Whether it was made of rows of a spool."""
    scores: tuple[ScoreFile, ...] | None = None
    """With the added score to choose by, as far as its rows have one. None: it is a part of the logged rewards."""


@dataclass(frozen=True, slots=True)
class Log:
    """One of the logs."""

    name: str
    """As it was given."""
    first_writer: int
    scorers: tuple[tuple[str, str, str], ...] | None = None
    """Name, id and revision of the models of the added score to choose by; None: it is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionPlan:
    """A selection in every detail."""

    out: Path
    work: Path
    rule: Rule
    filters: Filters
    format: str
    seed: int
    written: Written
    logs: tuple[Log, ...]
    files: tuple[File, ...]
    """In the order of the log."""
    lowest: tuple[int, ...]
    """First ordinal of each writer."""
    ranges: tuple[int, ...]
    """Number of the first range of each writer, and of all ranges of a form."""
    tasks: tuple[tuple[int, int], ...]
    """Files of each task of `gather`: first, and one past the last."""
    buckets: int
    repeated: bool
    """Whether requests answered by several writers were looked for."""
    scales: tuple[tuple[str, float, float], ...] = ()
    """Of normalised rewards: exact name of the reward model, mean, standard deviation."""

    @property
    def bucket_tasks(self) -> int:
        """How many tasks there are by prompt."""
        return -(-self.buckets * BUCKET_RECORDS // TASK_RECORDS)

    def buckets_of(self, task: int) -> range:
        """The partitions of a task by prompt."""
        per_task = TASK_RECORDS // BUCKET_RECORDS
        return range(task * per_task, min((task + 1) * per_task, self.buckets))

    def bucket(self, keys: Rows) -> NDArray[np.int64]:
        """(m,) partitions by prompt: the upper bits of the key, so that they are even."""
        return ((keys["hi"] >> np.uint64(32)) * np.uint64(self.buckets) >> np.uint64(32)).astype(np.int64)

    @property
    def all_ranges(self) -> int:
        """How many partitions by place there are."""
        return len(FORMS) * self.ranges[-1]

    def range_of(self, form: Any, writer: Any, ordinal: Any) -> NDArray[np.int64]:
        """(m,) partitions by place, which rise with (form, writer, ordinal)."""
        lowest, ranges = np.array(self.lowest), np.array(self.ranges)
        number: NDArray[np.int64] = (
            form * ranges[-1] + ranges[writer] + (ordinal - lowest[writer]) // RANGE_ORDINALS
        ).astype(np.int64)
        return number

    def where(self, file: File) -> Where:
        """Which rows of a file are read: those of a spool were chosen when they were copied."""
        return EVERYTHING if file.frozen else time_range(self.filters)

    def log_of(self, writer: int) -> Log:
        """The log that a writer belongs to."""
        return next(log for log in reversed(self.logs) if log.first_writer <= writer)


def time_range(filters: Filters) -> Where:
    """The filters that the reader applies."""
    return replace(EVERYTHING, since=filters.since, until=filters.until)


def divide(files: tuple[File, ...]) -> tuple[tuple[int, int], ...]:
    """Neighbouring files into tasks of about `TASK_RECORDS`."""
    tasks, first, records = [], 0, 0
    for number, file in enumerate(files):
        records += file.part.last_ordinal - file.part.first_ordinal + 1
        if records >= TASK_RECORDS or number == len(files) - 1:
            tasks.append((first, number + 1))
            first, records = number + 1, 0
    return tuple(tasks)


def count_buckets(files: tuple[File, ...]) -> int:
    """How many partitions by prompt there are to be, by what the names of the files say of their records."""
    records = sum(file.part.last_ordinal - file.part.first_ordinal + 1 for file in files)
    return max(1, records // BUCKET_RECORDS)


def count_ranges(first_ordinal: int, last_ordinal: int) -> int:
    """How many partitions by place a writer has."""
    return (last_ordinal - first_ordinal) // RANGE_ORDINALS + 1

"""`bon log stats`: what a log holds, counted in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from bon_server.core.errors import LogError
from bon_server.core.types import CandidateStatus, Kind, Outcome
from bon_server.log.read.feedback import FeedbackReader
from bon_server.log.read.reader import LogReader, refuse_damage
from bon_server.log.scores.files import read_scores, score_files, score_names


class Stats(TypedDict):
    """The document of `bon log stats --json`."""

    requests: int
    """Records: a request tried twice counts twice."""
    candidates: int
    by_status: dict[str, int]
    """Candidates by status; every status is listed."""
    by_kind: dict[str, int]
    """Records by kind; every kind is listed."""
    by_outcome: dict[str, int]
    """Records by outcome; every outcome is listed."""
    unsealed: int
    """Records still in the spool."""
    segments: int
    removed: int
    """Segments, also of feedback, that were published and are no longer here; nothing else counts them."""
    feedback: int
    scores: dict[str, dict[str, int]]
    """Added scores by name: `requests` that have them, and of their candidates those that are `scored`."""
    bytes: int
    """Of the log's files on disk."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    status: CandidateStatus


@dataclass(frozen=True, slots=True)
class _Counted:
    kind: Kind
    outcome: Outcome
    candidates: tuple[_Candidate, ...]


def log_stats(directory: Path, on_damage: Callable[[LogError], None] = refuse_damage) -> Stats:
    """Counts a log, also while a server writes it.

    Raises `LogError` when there is none or, unless `on_damage` has it left out, it is damaged.
    """
    requests = 0
    statuses: Counter[CandidateStatus] = Counter()
    kinds: Counter[Kind] = Counter()
    outcomes: Counter[Outcome] = Counter()
    with LogReader(directory, on_damage) as reader, FeedbackReader(directory, on_damage) as feedback_reader:
        feedback = feedback_reader.count()
        for _, counted in reader.fields(_Counted):
            requests += 1
            kinds[counted.kind] += 1
            outcomes[counted.outcome] += 1
            statuses.update(candidate.status for candidate in counted.candidates)
    return Stats(
        requests=requests,
        candidates=statuses.total(),
        by_status={status.value: statuses[status] for status in CandidateStatus},
        by_kind={kind.value: kinds[kind] for kind in Kind},
        by_outcome={outcome.value: outcomes[outcome] for outcome in Outcome},
        unsealed=reader.unsealed,
        segments=len(reader.parts),
        removed=len(reader.removed),
        feedback=feedback,
        scores={name: _count_scores(directory, name, on_damage) for name in score_names(directory)},
        bytes=sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()),
    )


def _count_scores(directory: Path, name: str, on_damage: Callable[[LogError], None]) -> dict[str, int]:
    requests = scored = 0
    for file in score_files(directory, name):
        try:
            rows = read_scores(file.path, ("candidates",))["candidates"]
        except LogError as error:
            on_damage(error)
            continue
        requests += len(rows)
        for chunk in rows.chunks:
            scored += chunk.flatten().field("status").to_pylist().count(CandidateStatus.SCORED)
    return {"requests": requests, "scored": scored}

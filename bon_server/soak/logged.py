"""A log against what callers were told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from bon_server.log.feedback_reader import FeedbackReader
from bon_server.log.reader import LogReader
from bon_server.soak.ledger import Ledger, Winner
from bon_server.types import Outcome


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True)
class _Row:
    request_id: str
    outcome: Outcome
    selected_index: int | None
    candidates: tuple[_Text, ...]

    @property
    def winner(self) -> Winner | None:
        if self.selected_index is None:
            return None
        return Winner.of(self.selected_index, self.candidates[self.selected_index].text)


@dataclass
class Differences:
    """Ids of one run; those that nobody was told of may be in the log or not."""

    answered: int = 0
    """Rows that hold an answer."""
    missing: list[str] = field(default_factory=list)
    """Acknowledged and not in the log."""
    changed: list[str] = field(default_factory=list)
    """In the log with another winner."""
    doubled: list[str] = field(default_factory=list)
    """Answered twice or more, acknowledged or not."""
    feedback_missing: list[str] = field(default_factory=list)
    feedback_doubled: list[str] = field(default_factory=list)


def compare(log: Path, ledger: Ledger) -> Differences:
    """Reads the whole log, sealed or not, once. Raises `LogError` when it cannot be read."""
    found = Differences()
    times: Counter[str] = Counter()
    prefix = f"{ledger.run}-"
    with LogReader(log) as reader:
        for _, row in reader.fields(_Row):
            if row.request_id.startswith(prefix) and row.outcome in (Outcome.OK, Outcome.PARTIAL):
                times[row.request_id] += 1
                if row.request_id in ledger.acknowledged and ledger.acknowledged[row.request_id] != row.winner:
                    found.changed.append(row.request_id)
    found.answered = times.total()
    found.missing = [request_id for request_id in ledger.acknowledged if request_id not in times]
    found.doubled = [request_id for request_id, count in times.items() if count > 1]
    with FeedbackReader(log) as reader_of_feedback:
        seen = Counter(one.feedback_id for one in reader_of_feedback.all() if one.feedback_id.startswith(prefix))
    found.feedback_missing = sorted(ledger.feedback - seen.keys())
    found.feedback_doubled = [feedback_id for feedback_id, count in seen.items() if count > 1]
    return found

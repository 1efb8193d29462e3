"""What callers were told (`Ledger`), and the log held against it (`compare`)."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from bon.v1 import bon_pb2 as pb

from bon_server.core.types import Outcome
from bon_server.log.read.feedback import FeedbackReader
from bon_server.log.read.reader import LogReader


@dataclass(frozen=True, slots=True)
class Winner:
    """The chosen candidate of an answer, small enough to remember hundreds of thousands."""

    index: int
    text_crc32: int

    @classmethod
    def of(cls, index: int, text: str) -> Winner:
        """As the answer or the log has it."""
        return cls(index, zlib.crc32(text.encode()))


class Ledger:
    """One run. Its request ids begin with `run`, so that a log may hold other requests too."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.acknowledged: dict[str, Winner | None] = {}
        """By request id; None: completions that were only scored."""
        self.feedback: set[str] = set()
        """Ids of acknowledged observations."""
        self.contradictions: list[str] = []
        """Request ids that got two different answers, or the same one sampled twice."""
        self.replayed = 0
        """Answers that came from the log."""
        self.codes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """Calls by what they were and how they ended."""
        self._sampled: set[str] = set()
        self._ids = 0

    @property
    def calls(self) -> int:
        """Calls that have ended."""
        return sum(codes.total() for codes in self.codes.values())

    def new_id(self) -> str:
        """A request or feedback id that was not used before."""
        self._ids += 1
        return f"{self.run}-{self._ids}"

    def answered(self, answer: pb.GenerateResponse) -> None:
        """An answer has reached its caller."""
        request_id, winner = answer.request_id, Winner.of(answer.best.index, answer.best.text)
        sampled_again = not answer.replayed and request_id in self._sampled
        if sampled_again or self.acknowledged.setdefault(request_id, winner) != winner:
            self.contradictions.append(request_id)
        if answer.replayed:
            self.replayed += 1
        else:
            self._sampled.add(request_id)

    def scored(self, answer: pb.ScoreResponse) -> None:
        """Rewards have reached their caller."""
        self.acknowledged[answer.request_id] = None


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

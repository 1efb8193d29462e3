"""What callers were told: the list that the log is held against."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass

from bon.v1 import bon_pb2 as pb


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

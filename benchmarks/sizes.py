"""How much is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Of one run."""

    repetitions: int
    """Each asks all stacks the same questions, and the next one others."""
    questions: Mapping[int, int]
    """Questions of a pass, by how many are in flight."""
    synthetic_s: float
    """Length of a pass with synthetic models."""
    overlap_repetitions: int
    """Questions that are asked with scoring beside sampling and after it."""

    @property
    def all_questions(self) -> int:
        """All that are needed: the measured ones, those to warm up, one to compare rewards."""
        return self.repetitions * sum(self.questions.values()) + max(self.questions) + 1


FULL = Sizes(repetitions=3, questions={1: 5, 8: 16, 20: 60}, synthetic_s=6.0, overlap_repetitions=12)
QUICK = Sizes(repetitions=3, questions={1: 2, 8: 8}, synthetic_s=2.0, overlap_repetitions=6)

"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Of one run."""

    repetitions: int
    """Each asks all stacks the same questions, and the next one others."""
    questions_at_1: int
    """Questions of a pass with one in flight."""
    questions_at_8: int
    """Questions of a pass with eight in flight."""
    synthetic_s: float
    """Length of a pass with synthetic models."""
    overlap_repetitions: int
    """Questions that are asked with scoring beside sampling and after it."""

    def at(self, concurrency: int) -> int:
        """Questions of a pass."""
        return self.questions_at_1 if concurrency == 1 else self.questions_at_8

    @property
    def questions(self) -> int:
        """All that are needed: the measured ones, eight to warm up, one to compare rewards."""
        return self.repetitions * (self.questions_at_1 + self.questions_at_8) + 9


FULL = Sizes(repetitions=5, questions_at_1=5, questions_at_8=16, synthetic_s=6.0, overlap_repetitions=12)
QUICK = Sizes(repetitions=3, questions_at_1=2, questions_at_8=8, synthetic_s=2.0, overlap_repetitions=6)

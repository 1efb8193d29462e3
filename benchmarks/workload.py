"""What is asked: held-out arithmetic of the demo, the same questions in the same order for every stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bon_server.demo.problems import problems

SEED_STRIDE = 1000
"""Candidate i of a question is sampled with the question's seed + i, so seeds of two questions stay apart."""


@dataclass(frozen=True)
class Sampling:
    """How each candidate is sampled, by every stack."""

    n: int = 16
    """Candidates of a question."""
    temperature: float = 0.8
    """No top-p, no top-k, no penalties."""
    max_tokens: int = 48
    """Longest completion."""


@dataclass(frozen=True)
class Question:
    """One prompt, with the seed of its first candidate."""

    prompt: str
    """The whole content of the one user message."""
    seed: int
    """With equal seeds the stacks sample almost equal lengths; otherwise luck would hide small differences."""


class Questions:
    """Hands out questions that were not asked before, since a repeated prompt is in the engine's prefix cache."""

    def __init__(self, count: int) -> None:
        asked = problems("development", {"chain_sum": count})
        self._left = iter([Question(problem.prompt, i * SEED_STRIDE) for i, problem in enumerate(asked)])

    def take(self, count: int) -> Sequence[Question]:
        """The next `count` questions. Raises StopIteration when there are no more."""
        return [next(self._left) for _ in range(count)]

"""What a handful of judged answers says: one sample against best-of-N against the best possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bon.v1 import bon_pb2 as pb

from bon_server.demo.problems import Problem, is_right


@dataclass(frozen=True)
class DemoOutcome:
    """Accuracies, 0 to 1, over problems."""

    problems: int
    single: float
    """Mean over problems of the share of right candidates: what one sample gets."""
    best_of_n: float
    """Share of problems whose winner is right."""
    any_of_n: float
    """Share of problems with at least one right candidate (pass@n)."""
    standard_error: float
    """Of `best_of_n`."""


def judge(answered: Sequence[tuple[Problem, pb.GenerateResponse]]) -> DemoOutcome:
    """At least one answer, each with all its candidates."""
    right = [[is_right(problem, candidate.text) for candidate in each.candidates] for problem, each in answered]
    count = len(answered)
    best = sum(is_right(problem, each.best.text) for problem, each in answered) / count
    return DemoOutcome(
        problems=count,
        single=sum(sum(row) / len(row) for row in right) / count,
        best_of_n=best,
        any_of_n=sum(any(row) for row in right) / count,
        standard_error=math.sqrt(best * (1 - best) / count),
    )

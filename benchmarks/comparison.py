"""From passes to ratios. Every ratio is formed within a repetition, where all stacks had the same questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, median, stdev

from scipy.special import stdtrit

from benchmarks.load import Pass

Passes = Mapping[tuple[str, int], Sequence[Pass]]
"""(stack, concurrency) → (repetitions,) passes."""

Spread = dict[str, float]
"""Median, minimum and maximum over the repetitions."""


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return {"median": round(median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


def seconds(one: Pass) -> float:
    """Time for all questions."""
    return one.seconds


def seconds_per_token(one: Pass) -> float:
    """Time that does not depend on how long the sampled texts happened to be."""
    return one.seconds / one.tokens


def ratio(over: Sequence[Pass], under: Sequence[Pass], quantity: Callable[[Pass], float]) -> Spread:
    """`over` ÷ `under`, repetition by repetition."""
    return spread([quantity(a) / quantity(b) for a, b in zip(over, under, strict=True)])


def fastest(passes: Passes, names: Sequence[str], concurrency: int) -> str:
    """The stack that took the least time over all repetitions."""
    return min(names, key=lambda name: sum(one.seconds for one in passes[name, concurrency]))


def figures(passes: Sequence[Pass]) -> dict[str, float | Spread]:
    """A stack's own figures at one concurrency."""
    return {
        "answers_per_s": spread([one.answers / one.seconds for one in passes]),
        "tokens_per_s": spread([one.tokens / one.seconds for one in passes]),
        "median_request_s": spread([one.median_request_s for one in passes]),
        "total_s": spread([one.seconds for one in passes]),
        "tokens_per_answer": round(mean(one.tokens / one.answers for one in passes), 2),
    }


def reward_difference(ours: Sequence[Pass], theirs: Sequence[Pass]) -> dict[str, float | list[float]]:
    """Mean of our answers' rewards less theirs, question by question, with its 95 % interval (Student's t)."""
    pairs = [
        (a, b)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one.rewards, other.rewards, strict=True)
        if a is not None and b is not None
    ]
    differences = [a - b for a, b in pairs]
    half = float(stdtrit(len(differences) - 1, 0.975)) * stdev(differences) / len(differences) ** 0.5
    middle = mean(differences)
    return {"value": round(middle, 4), "ci95": [round(middle - half, 4), round(middle + half, 4)]}


def tokens_difference(passes: Passes, left_out: str) -> float:
    """Largest relative difference between two stacks' sampled tokens, at the same concurrency; one stack left out."""
    totals: dict[int, list[int]] = {}
    for (name, concurrency), repeated in passes.items():
        if name == left_out:
            continue
        totals.setdefault(concurrency, []).append(sum(one.tokens for one in repeated))
    return round(max((max(each) - min(each)) / min(each) for each in totals.values()), 4)

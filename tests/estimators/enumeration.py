"""The same figures by listing every subset: slow, and plain to see."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean


def best_of_every_subset(ranks: Sequence[float], values: Sequence[float], k: int) -> float:
    """Mean over all k-subsets of the mean value of the subset's best."""
    results = []
    for subset in combinations(range(len(ranks)), k):
        best = max(ranks[i] for i in subset)
        results.append(fmean(values[i] for i in subset if ranks[i] == best))
    return fmean(results)


def wins_of_every_subset(ranks: Sequence[float], values: Sequence[float], k: int) -> float:
    """Mean over all k-subsets and each other sample of how often the subset's best beats it by value."""
    results = []
    for subset in combinations(range(len(ranks)), k):
        best = max(ranks[i] for i in subset)
        for other in set(range(len(ranks))) - set(subset):
            tied = [values[i] for i in subset if ranks[i] == best]
            results.append(fmean((value > values[other]) + 0.5 * (value == values[other]) for value in tied))
    return fmean(results)

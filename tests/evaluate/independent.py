"""The figures of a log calculated another way: plain Python over the import lines, every subset listed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from tests.estimators.enumeration import best_of_every_subset

Lines = Sequence[dict[str, Any]]


def scored(line: dict[str, Any], score: str | None = None) -> tuple[list[float], list[float]]:
    """Rewards and scores of the candidates that have both."""
    rewards = line["rewards"]
    values = rewards if score is None else line["scores"][score]
    both = [
        (reward, value)
        for reward, value in zip(rewards, values, strict=True)
        if reward is not None and math.isfinite(reward) and value is not None
    ]
    return [reward for reward, _ in both], [value for _, value in both]


def mean_at(lines: Lines, k: int, score: str | None = None) -> float:
    """Mean over the lines with at least k scored candidates."""
    prompts = [scored(line, score) for line in lines]
    return fmean(best_of_every_subset(*prompt, k) for prompt in prompts if len(prompt[0]) >= k)


def exact_kl(rewards: Sequence[float], k: int) -> float:
    """KL of the best of k draws from these rewards, by the definition."""
    total, n = 0.0, len(rewards)
    for level in set(rewards):
        upto, below = (sum(reward <= level for reward in rewards), sum(reward < level for reward in rewards))
        chosen = (upto / n) ** k - (below / n) ** k
        total += chosen * math.log(chosen / ((upto - below) / n)) if chosen > 0 else 0.0
    return total

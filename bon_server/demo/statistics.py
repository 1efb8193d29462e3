"""What a table of rewards and verdicts says: accuracies and pair accuracy, with bootstrap intervals over problems.

Everywhere P problems with N candidates each: `rewards` (P, N) float64, `right` (P, N) bool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bon_server.estimators.clusters import ratios

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Figure = dict[str, float | list[float] | None]


def figures(rewards: Floats, right: Bools, answers: Sequence[Sequence[str | None]], seed: int) -> dict[str, Figure]:
    """Returns each measure with its 95 % bootstrap interval over problems, the same resamples for all.

    Args:
        answers: (P, N) the number that each candidate gives, for the majority vote; None where it gives none.
        seed: of the resamples and of the random choice.

    Raises:
        ValueError: a reward is not finite (NaN would win every argmax).
    """
    if not np.isfinite(rewards).all():
        raise ValueError(f"rewards: {int((~np.isfinite(rewards)).sum())} of {rewards.size} are not finite")
    problems, n = right.shape
    rows, each = np.arange(problems), np.ones(problems)
    single = right.mean(axis=1)
    best = right[rows, rewards.argmax(axis=1)]  # argmax takes the lowest index of a tie
    won, pairs = pair_counts(rewards, right)
    at_random = np.random.default_rng(seed).integers(n, size=problems)
    above_and_below = {
        "single_sample_accuracy": (single, each),
        "best_of_n_accuracy": (best, each),
        "best_of_n_over_single_sample": (best, single),
        "pair_accuracy": (won, pairs),
        "pair_accuracy_mean_over_problems": (won / np.maximum(pairs, 1), pairs > 0),
        "pass_at_n": (np.any(right, axis=1), each),
        "majority_vote_accuracy": (_majority(answers, right), each),
        "random_choice_accuracy": (right[rows, at_random], each),
    }
    above, below = (
        np.stack(list(columns), axis=1).astype(np.float64) for columns in zip(*above_and_below.values(), strict=True)
    )
    values, between = ratios(above, below, seed)
    return {
        name: {"value": _rounded(values[index]), "ci95": _bounds(between[:, index])}
        for index, name in enumerate(above_and_below)
    }


def pair_counts(rewards: Floats, right: Bools) -> tuple[Floats, Floats]:
    """Returns (P,) how often a right candidate beats a wrong one (a tie: half), and (P,) how many such pairs are."""
    mixed = right[:, :, None] & ~right[:, None, :]
    better = np.sign(rewards[:, :, None] - rewards[:, None, :]) / 2 + 0.5
    return (better * mixed).sum(axis=(1, 2)), mixed.sum(axis=(1, 2)).astype(float)


def _majority(answers: Sequence[Sequence[str | None]], right: Bools) -> Bools:
    """(P,) verdict on the most frequent number (of equals, the first to appear); wrong where no candidate gives one."""
    verdicts = np.zeros(len(answers), dtype=np.bool_)
    for index, row in enumerate(answers):
        given = Counter(answer for answer in row if answer is not None)
        if given:
            verdicts[index] = right[index, list(row).index(given.most_common(1)[0][0])]
    return verdicts


def _rounded(value: float) -> float | None:
    """What is undefined (nothing right at all, hence no pairs) is None, in JSON null."""
    return round(float(value), 4) if np.isfinite(value) else None


def _bounds(between: Floats) -> list[float] | None:
    return [round(float(bound), 4) for bound in between] if np.isfinite(between).all() else None

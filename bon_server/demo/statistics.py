"""What a table of rewards and verdicts says: accuracies and pair accuracy, with bootstrap intervals over problems.

Everywhere P problems with N candidates each: `rewards` (P, N) float64, `right` (P, N) bool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.int64]
Measure = Callable[[Indices], float]
Figure = dict[str, float | list[float] | None]

RESAMPLES = 10_000


def figures(rewards: Floats, right: Bools, answers: Sequence[Sequence[str | None]], seed: int) -> dict[str, Figure]:
    """Returns each measure with its 95 % percentile-bootstrap interval over problems, the same resamples for all.

    Args:
        answers: (P, N) the number that each candidate gives, for the majority vote; None where it gives none.
        seed: of the resamples and of the random choice.

    Raises:
        ValueError: a reward is not finite (NaN would win every argmax).
    """
    if not np.isfinite(rewards).all():
        raise ValueError(f"rewards: {int((~np.isfinite(rewards)).sum())} of {rewards.size} are not finite")
    random = np.random.default_rng(seed)
    problems, n = right.shape
    rows = np.arange(problems)
    single = right.mean(axis=1)
    best = right[rows, rewards.argmax(axis=1)].astype(float)  # argmax takes the lowest index of a tie
    won, pairs = pair_counts(rewards, right)
    both = pairs > 0
    macro = np.where(both, won / np.maximum(pairs, 1), 0.0)
    choose: dict[str, Measure] = {
        "single_sample_accuracy": lambda i: float(single[i].mean()),
        "best_of_n_accuracy": lambda i: float(best[i].mean()),
        "best_of_n_over_single_sample": lambda i: _ratio(float(best[i].sum()), float(single[i].sum())),
        "pair_accuracy": lambda i: _ratio(float(won[i].sum()), float(pairs[i].sum())),
        "pair_accuracy_mean_over_problems": lambda i: _ratio(float(macro[i].sum()), float(both[i].sum())),
        "pass_at_n": _mean_of(np.any(right, axis=1)),
        "majority_vote_accuracy": _mean_of(_majority(answers, right)),
        "random_choice_accuracy": _mean_of(right[rows, random.integers(n, size=problems)]),
    }
    resamples = random.integers(problems, size=(RESAMPLES, problems))
    return {name: _with_interval(measure, rows, resamples) for name, measure in choose.items()}


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


def _mean_of(verdicts: Bools) -> Measure:
    return lambda indices: float(verdicts[indices].mean())


def _ratio(above: float, below: float) -> float:
    return above / below if below else float("nan")


def _with_interval(measure: Measure, rows: Indices, resamples: Indices) -> Figure:
    """What is undefined (nothing right at all, hence no pairs) is None, in JSON null."""
    value = measure(rows)
    spread = np.array([measure(indices) for indices in resamples])
    spread = spread[np.isfinite(spread)]
    interval = [round(float(q), 4) for q in np.quantile(spread, [0.025, 0.975])] if spread.size else None
    return {"value": round(value, 4) if np.isfinite(value) else None, "ci95": interval}

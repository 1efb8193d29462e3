"""How often one answer is preferred to another; a tie counts half."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bon_server.estimators.order_statistics import order_weights, tie_means

Floats = NDArray[np.float64]


def win_rate_bound(n: int) -> float:
    """n / (n + 1): the best of n wins no more often than this against one sample of the same policy.

    Equality for rewards without ties, when the judge is the reward itself: each of n + 1 samples is the best with equal
    probability (Gui et al. 2024, "BoNBoN alignment for large language models"; Beirami et al. 2024). No other judge and
    no ties can give more.
    """
    if n < 1:
        raise ValueError(f"n = {n}: at least 1")
    return n / (n + 1)


def win_rate_at_k(ranks: ArrayLike, values: ArrayLike | None = None) -> Floats:
    """Probability that the best of k by rank beats one more sample by value: (m, n - 1) for k = 1..n-1, unbiased.

    The mean over all choices of one sample and of k of the others, by the weights of `reward_at_k` (a U-statistic).
    ranks, values: (m, n), n at least 2; values None: the ranks judge.
    """
    by = np.atleast_2d(np.asarray(ranks, dtype=np.float64))
    of = by if values is None else np.atleast_2d(np.asarray(values, dtype=np.float64))
    n = by.shape[1]
    if n < 2 or of.shape != by.shape:
        raise ValueError(f"ranks have shape {by.shape}, values {of.shape}: the same, with at least two samples each")
    weights = order_weights(n - 1)
    total = np.zeros((len(by), n - 1))
    for other in range(n):
        rest = np.delete(np.arange(n), other)
        wins = (np.sign(of[:, rest] - of[:, [other]]) + 1) / 2
        total += tie_means(by[:, rest], wins) @ weights
    return np.asarray(total / n)


def preference(ours: ArrayLike, theirs: ArrayLike) -> float:
    """Probability that a sample of one set beats a sample of the other, all pairs: Mann and Whitney's U / (n m).

    ours: (n,), theirs: (m,).
    """
    first, second = np.asarray(ours, dtype=np.float64), np.sort(np.asarray(theirs, dtype=np.float64))
    if not (len(first) and len(second)):
        raise ValueError("ours and theirs: at least one sample each")
    below, through = np.searchsorted(second, first, "left"), np.searchsorted(second, first, "right")
    return float((below + through).mean() / (2 * len(second)))

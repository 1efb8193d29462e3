"""reward@k: the expected reward, or any other value, of the best of k, from N >= k samples a prompt.

The mean over all k-subsets of the N samples of the value of the subset's best by rank (ties: each of the best alike) is
unbiased for the expectation over k fresh samples, being a U-statistic (Hoeffding 1948, "A class of statistics with
asymptotically normal distribution"); pass@k of Chen et al. 2021 ("Evaluating large language models trained on code",
eq. 1) is the case of a value in {0, 1} ranked by itself. No subset is enumerated: with samples in ascending order of
rank, the best of a k-subset is the one at position i (from 1) in C(i-1, k-1) of the C(N, k) subsets. A class of tied
samples at positions L+1..U gets the weight (C(U, k) - C(L, k)) / C(N, k) times the mean of its values, which is the
same as giving every member the mean of its class and its own position's weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
WEIGHTS_AT_ONCE = 1 << 22
"""Entries of a weight matrix that are held at once: 32 MB."""
ONE_THREAD = 1 << 17
"""Multiplications of a product that OpenBLAS does on the caller's thread; it takes others from 2^18 on."""


def order_weights(n: int, ks: ArrayLike | None = None) -> Floats:
    """Weight of each ascending position in the best of k: (n, len(ks)), every column sums to 1.

    w(n) = k / n and w(i) = w(i+1) (i-k+1) / i going down (positions i from 1), a product of factors in [0, 1], so that
    it neither overflows nor cancels: the relative error stays about n machine epsilons.

    n: samples, at least 1. ks: sizes of the subset in 1..n; None: all of them. Raises ValueError for others.
    """
    sizes = np.arange(1, n + 1) if ks is None else np.asarray(ks, dtype=np.int64)
    if n < 1 or sizes.min(initial=1) < 1 or sizes.max(initial=1) > n:
        raise ValueError(f"n = {n}, ks from {sizes.min(initial=1)} to {sizes.max(initial=1)}: 1 <= k <= n is needed")
    factors = np.empty((n, len(sizes)))
    factors[0] = sizes / n
    position = np.arange(n - 1, 0, -1)[:, None]
    np.divide(np.maximum(position - sizes + 1, 0), position, out=factors[1:])
    return np.asarray(np.cumprod(factors, axis=0)[::-1], dtype=np.float64)


def tie_means(ranks: Floats, values: Floats) -> Floats:
    """(m, n) values in ascending order of rank, those of equal rank replaced by their mean.

    ranks, values: (m, n), m prompts.
    """
    order = np.argsort(ranks, axis=1, kind="stable")
    ranks, values = np.take_along_axis(ranks, order, axis=1), np.take_along_axis(values, order, axis=1)
    first = np.ones(ranks.shape, dtype=np.bool_)
    first[:, 1:] = ranks[:, 1:] != ranks[:, :-1]
    if first.all():
        return values
    starts = np.flatnonzero(first.ravel())
    sizes = np.diff(starts, append=first.size)
    means = np.add.reduceat(values.ravel(), starts) / sizes
    return np.repeat(means, sizes).reshape(values.shape)


def reward_at_k(ranks: ArrayLike, values: ArrayLike | None = None, ks: ArrayLike | None = None) -> Floats:
    """Expected value of the best of k by rank, for each prompt: (m, len(ks)).

    Args:
        ranks: (m, n) or (n,), finite: what the best is best in.
        values: of the same shape, finite; None: the ranks themselves.
        ks: (K,) sizes in 1..n; None: all of them.

    Raises:
        ValueError: shapes differ, a number is not finite, or a k is out of range.
    """
    by = _matrix("ranks", ranks)
    if values is None:
        ordered = np.sort(by, axis=1)  # equal values need no mean
    else:
        of = _matrix("values", values)
        if of.shape != by.shape:
            raise ValueError(f"values have shape {of.shape}, ranks {by.shape}: one value for each is needed")
        ordered = tie_means(by, of)
    return weighted(ordered, np.arange(1, by.shape[1] + 1) if ks is None else np.asarray(ks, dtype=np.int64))


def weighted(ordered: Floats, ks: Ints) -> Floats:
    """(m, K) from (m, n) values in ascending order of rank, a block of ks at a time."""
    n = ordered.shape[1]
    block = max(1, WEIGHTS_AT_ONCE // n)
    parts = [_product(ordered, order_weights(n, ks[start : start + block])) for start in range(0, len(ks), block)]
    return np.concatenate(parts, axis=1) if parts else np.empty((len(ordered), 0))


def _product(rows: Floats, weights: Floats) -> Floats:
    """rows @ weights, where weights are few some rows at a time.

    For larger products OpenBLAS wakes all its threads, which spin for milliseconds after each and take the processor
    from those that read the log: half of the time of a curve.
    """
    some = ONE_THREAD // weights.size
    if some < 64:
        return np.asarray(rows @ weights)
    return np.concatenate([rows[start : start + some] @ weights for start in range(0, max(len(rows), 1), some)])


def reward_at_k_ragged(ranks: Sequence[ArrayLike], values: Sequence[ArrayLike] | None = None) -> Floats:
    """As `reward_at_k` for prompts with different numbers of samples: (m, largest n), NaN where k is above its n.

    ranks, values: for each prompt (n_i,); a prompt may have none.
    """
    rows = [np.asarray(row, dtype=np.float64) for row in ranks]
    result = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for index, row in enumerate(rows):
        if len(row):
            result[index, : len(row)] = reward_at_k(row, None if values is None else values[index])[0]
    return result


def pass_at_k(right: ArrayLike, ks: ArrayLike | None = None) -> Floats:
    """Probability that at least one of k is right: (m, len(ks)); 1 - C(n-c, k) / C(n, k) with c right ones.

    right: (m, n) or (n,) truth values. Chen et al. 2021, eq. 1.
    """
    return reward_at_k(np.asarray(right, dtype=np.bool_), None, ks)


def vote_counts(answers: Sequence[Hashable | None]) -> Floats:
    """(n,) how many samples of a prompt give the same answer; 0 for those that give none (None).

    `reward_at_k(vote_counts(answers), right, [n])` is the accuracy of the majority vote over all n ("self-consistency",
    Wang et al. 2022), ties drawn at random. For k < n it is the best of k by popularity among all n, not a vote of k.
    """
    counts = Counter(answer for answer in answers if answer is not None)
    return np.array([counts[answer] if answer is not None else 0 for answer in answers], dtype=np.float64)


def reward_beyond(ranks: ArrayLike, n: int, values: ArrayLike | None = None) -> Floats:
    """(m,) extrapolation to the best of n >= N: `reward_at_k` at N plus what the plug-in gains from N to n.

    The plug-in lets the N samples stand for the policy, drawn from with replacement: weights (i/N)^n - ((i-1)/N)^n. It
    knows nothing better than the best sample seen, so the gain is too small for n far above N, and no interval tells by
    how much. Label it wherever it is shown.

    n: at least N; at N it is `reward_at_k`. Raises ValueError below.
    """
    by = _matrix("ranks", ranks)
    samples = by.shape[1]
    if n < samples:
        raise ValueError(f"n = {n}: at least the {samples} samples there are; use reward_at_k below")
    ordered = np.sort(by, axis=1) if values is None else tie_means(by, _matrix("values", values))
    below = np.arange(samples + 1) / samples
    return np.asarray(ordered[:, -1] + ordered @ np.diff(below**n - below**samples))


def _matrix(name: str, given: ArrayLike) -> Floats:
    array = np.atleast_2d(np.asarray(given, dtype=np.float64))
    if array.ndim != 2 or array.shape[1] < 1:
        raise ValueError(f"{name} have shape {array.shape}: (prompts, samples) with at least one sample is needed")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {int((~np.isfinite(array)).sum())} of {array.size} are not finite")
    return array

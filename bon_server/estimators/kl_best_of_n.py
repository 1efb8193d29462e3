"""KL(best-of-n || policy), in nats. Which figure is valid depends on how the answer was chosen:

    the best of n samples, all scored           `kl_bound`; `kl_discrete`, `kl_exact_plugin`, `kl_winner_probability`
    drawn from n scored samples by soft rule    `kl_soft_bound`
    any other choice of one of n samples        `kl_any_selection_bound`: stopped, pruned, cut by a deadline

A bound is not an estimate. For rewards with ties, and for prompts with few likely answers, it is far too large: with
two rewards, the better of probability .85, best-of-8 moves by 0.16 nats, and the bound says 1.20.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bon_server.estimators.order_statistics import WEIGHTS_AT_ONCE, order_weights, tie_means
from bon_server.estimators.soft import soft_weights

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def kl_bound(n: int) -> float:
    """Upper bound log n - (n - 1) / n on KL(best-of-n || policy), in nats.

    An equality only for continuous rewards without ties; see Beirami et al. 2024, "Theoretical guarantees on the
    best-of-n alignment policy", Theorem 1. n: samples, at least 1.
    """
    if n < 1:
        raise ValueError(f"n = {n}: at least 1")
    return math.log(n) - (n - 1) / n


def kl_winner_probability(n: int, winner_logprob: float) -> float:
    """Estimate of KL(best-of-n || policy) from the probability of the winner's text, in nats.

    The estimator of Beirami et al. 2024 for low-entropy prompts, where the bound is far too large: with e the
    probability of the winner under the policy, a = (1 - e)^n and b = 1 - a, it is
    a (log n + (n - 1) log(1 - e) - (n - 1) / n) + b log(b / e).
    n: samples, at least 1; winner_logprob: log e, at most 0, in nats.
    """
    if winner_logprob > 0.0 or math.isnan(winner_logprob):
        raise ValueError(f"winner_logprob = {winner_logprob}: at most 0")
    return float(_winner_probability(n, np.array(winner_logprob)))


def kl_any_selection_bound(n: int) -> float:
    """Upper bound log n, for one of n independent samples chosen in whatever way.

    The chance of an answer being chosen is at most the chance that it is among the n, so no density ratio is above n.
    It holds for stopped, pruned and soft runs and those cut by a deadline, with n the samples asked for.
    """
    if n < 1:
        raise ValueError(f"n = {n}: at least 1")
    return math.log(n)


def kl_soft_bound(rewards: ArrayLike, temperature: float) -> Floats:
    """(m,) terms of an upper bound on the KL of soft best-of-n: log n less the entropy of the draw's weights.

    The expectation over prompts' samples of sum_i w_i log(n w_i) is the KL of samples and drawn index together, which
    that of the drawn answer cannot exceed (data processing). rewards: (m, n).
    """
    weights = soft_weights(rewards, temperature)
    log_weights = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    return np.asarray((weights * (math.log(weights.shape[1]) + log_weights)).sum(axis=1))


def kl_discrete(probabilities: ArrayLike, n: int) -> float:
    """Exact KL of best-of-n for rewards of known distribution: sum_j D_j log(D_j / p_j), D_j = F_j^n - F_{j-1}^n.

    Among texts of one reward the best of n is distributed as the policy is, so the KL is that of the rewards (Beirami
    et al. 2024). probabilities: (rewards,) from the lowest reward to the highest, summing to 1.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if n < 1 or (p < 0).any() or not math.isclose(p.sum(), 1.0, abs_tol=1e-9):
        raise ValueError(f"n = {n}, probabilities sum to {p.sum()}: n from 1, probabilities from 0 that sum to 1")
    upper = np.minimum(np.cumsum(p), 1.0)
    upper[-1] = 1.0
    return float(_class_terms(np.concatenate([[0.0], upper[:-1]]), upper, np.array([n]))[:, 0].sum())


def kl_exact_plugin(rewards: ArrayLike, ks: ArrayLike | None = None) -> Floats:
    """(m, len(ks)) `kl_discrete` with each prompt's own n samples as the distribution; ks None: 1..n.

    Consistent for rewards that take few values. With few samples it is too low, most of all for prompts whose good
    answers are rarer than 1 in n: they look as if there were nothing to choose. Without ties it lies just under the
    bound. rewards: (m, n), finite.
    """
    ordered = np.sort(np.atleast_2d(np.asarray(rewards, dtype=np.float64)), axis=1)
    result = np.repeat(kl_untied(ordered.shape[1], ks)[None], len(ordered), axis=0)
    tied = tie_classes(ordered)
    np.add.at(result, tied.rows, kl_of_ties(tied, ordered.shape[1], ks))
    return result


class TieClasses(NamedTuple):
    """Samples of one prompt with the same reward: (c,) each, row by row."""

    rows: Ints
    below: Ints
    """How many samples of the prompt have less."""
    upto: Ints
    """How many have less or the same."""


def tie_classes(ordered: Floats) -> TieClasses:
    """The classes of two samples or more in (m, n) rewards, each row ascending."""
    width = max(ordered.shape[1] - 1, 1)
    same = np.flatnonzero(ordered[:, 1:] == ordered[:, :-1])
    rows, columns = np.divmod(same, width)
    first = np.flatnonzero((np.diff(same, prepend=-2) != 1) | (columns == 0))
    below = columns[first]
    return TieClasses(rows[first], below, below + np.diff(first, append=len(same)) + 1)


def kl_untied(n: int, ks: ArrayLike | None = None) -> Floats:
    """(len(ks),) `kl_exact_plugin` of n samples without ties; ks None: 1..n."""
    return np.concatenate([singles[-1] for _, singles in _singles(n, ks, n)])


def kl_of_ties(classes: TieClasses, n: int, ks: ArrayLike | None = None) -> Floats:
    """(c, len(ks)) what each class adds to `kl_untied`, never above 0: its own term less those of n samples apart."""
    kinds, which = np.unique(classes.below * (n + 1) + classes.upto, return_inverse=True)
    below, upto = kinds // (n + 1), kinds % (n + 1)
    parts = [
        (_class_terms(below / n, upto / n, some) - (singles[upto] - singles[below]))[which]
        for some, singles in _singles(n, ks, max(n, len(which)))
    ]
    return np.concatenate(parts, axis=1)


def _singles(n: int, ks: ArrayLike | None, rows: int) -> Iterator[tuple[Ints, Floats]]:
    """Some ks at a time, with the (n + 1, some) sums of the terms of the first 0, 1, ..., n samples, without ties.

    rows: of the largest array made for each k.
    """
    sizes = np.arange(1, n + 1) if ks is None else np.asarray(ks, dtype=np.int64)
    block = max(1, WEIGHTS_AT_ONCE // rows)
    upto = np.arange(n + 1) / n
    for start in range(0, len(sizes), block):
        some = sizes[start : start + block]
        terms = _class_terms(upto[:-1], upto[1:], some)
        yield some, np.concatenate([np.zeros((1, len(some))), np.cumsum(terms, axis=0)])


def _class_terms(lower: Floats, upper: Floats, ns: Ints) -> Floats:
    """(classes, len(ns)) D log(D / p) with D = upper^n - lower^n and p = upper - lower; 0 where D is 0."""
    gained = upper[:, None] ** ns - lower[:, None] ** ns
    ratio = np.divide(gained, (upper - lower)[:, None], out=np.ones_like(gained), where=gained > 0)
    return np.asarray(gained * np.log(ratio))


def kl_winner_probability_at_k(ranks: ArrayLike, logprobs: ArrayLike) -> Floats:
    """(m, n) mean of `kl_winner_probability(k, ...)` over the winners of all k-subsets, k = 1..n.

    ranks: (m, n); logprobs: (m, n) log-probability of each sample's text under the policy, in nats.
    """
    by, log_e = (
        np.atleast_2d(np.asarray(ranks, dtype=np.float64)),
        np.atleast_2d(np.asarray(logprobs, dtype=np.float64)),
    )
    n = by.shape[1]
    weights = order_weights(n)
    result = np.empty(by.shape)
    for k in range(1, n + 1):
        result[:, k - 1] = tie_means(by, _winner_probability(k, log_e)) @ weights[:, k - 1]
    return result


def _winner_probability(n: int, log_e: Floats) -> Floats:
    """`kl_winner_probability` for an array of log-probabilities."""
    if not (log_e <= 0).all():
        raise ValueError(f"logprobs: {int((~(log_e <= 0)).sum())} of {log_e.size} are above 0 or NaN")
    certain = (np.exp(log_e) == 1.0) | (n == 1)
    log_e = np.where(certain, -1.0, log_e)
    log_miss = np.log1p(-np.exp(log_e))
    a, b = np.exp(n * log_miss), -np.expm1(n * log_miss)
    log_gain = np.log(b, out=np.zeros_like(b), where=b > 0) - log_e
    gain = np.where(log_e < -690.0, math.log(n), log_gain)
    return np.where(certain, 0.0, a * (kl_bound(n) + (n - 1) * log_miss) + b * gain)

"""Statistics of best-of-n as pure functions. All KL figures are in nats."""

from __future__ import annotations

import math


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
    e = math.exp(winner_logprob)
    if n == 1 or e == 1.0:
        return 0.0
    log_miss = math.log1p(-e)
    a = math.exp(n * log_miss)
    b = -math.expm1(n * log_miss)
    log_gain = math.log(n) if e < 1e-300 else math.log(b) - winner_logprob
    return a * (kl_bound(n) + (n - 1) * log_miss) + b * log_gain

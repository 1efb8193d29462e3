"""When sampling more is not worth it: pure rules over the rewards seen so far.

A request with a price per candidate is an optimal-stopping problem with recall: draw rewards from an unknown
distribution, pay for each, keep the best. With a known distribution the best policy goes on while the expected gain of
one more draw, E[max(X - best, 0)], is above its price (Weitzman 1979, "Optimal Search for the Best Alternative", for
alternatives that are all alike). Here the distribution is estimated: rewards of one prompt are taken as normal with
unknown mean and variance, so that the next one is Student-t distributed (Gelman et al., Bayesian Data Analysis, 3rd
ed., section 3.2). The mean gets a flat prior, since prompts differ in it; the variance gets what earlier requests
showed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy.special import stdtr

from bon_server.core.types import Budget, SelectionReason

SMALLEST_WAVE = 4
"""Candidates of an adaptive request that run at once, at least: fewer leave the engine idle."""
WAVES = 3
"""Without a price a wave is no larger than n divided by this: a threshold saves little when all run at once."""
PRIOR_DEGREES = 8.0
"""What earlier requests say of the variance counts as much as so many candidates, at most."""
FORGET = 0.99
"""Weight of what was known, for each request that adds to it: about the last 100 requests count."""


@dataclass(frozen=True, slots=True)
class RewardPrior:
    """Pooled variance of rewards within a prompt, over earlier requests."""

    squares: float = 0.0
    """Sum of squared deviations from each prompt's own mean."""
    degrees: float = 0.0
    """Degrees of freedom they stand for: candidates less prompts."""

    def after(self, rewards: Sequence[float]) -> RewardPrior:
        """With one more request's finite rewards; older ones count a little less."""
        if len(rewards) < 2:
            return self
        squares = FORGET * self.squares + _squares(rewards)
        if squares == math.inf:
            return self
        return RewardPrior(squares, FORGET * self.degrees + len(rewards) - 1)


NO_PRIOR = RewardPrior()


def wave(budget: Budget, n: int, share: int) -> int:
    """How many of n candidates run at once: all of them, unless their number adapts.

    share: of the policy's places, what this request may take. Where candidates cost nothing but time, it takes them;
    where they have a price, each has to be worth it first.
    """
    if budget.price_per_candidate is None:
        return n
    room = min(share, n // WAVES) if budget.price_per_candidate == 0 else 0
    return min(n, max(SMALLEST_WAVE, budget.min_n or 0, room))


def reached(budget: Budget, reward: float | None) -> bool:
    """Whether this reward ends the sampling."""
    return budget.stop_at_reward is not None and reward is not None and reward >= budget.stop_at_reward


def worth_one_more(
    budget: Budget, rewards: Sequence[float], reward_prior: RewardPrior, running: int, pruned: int = 0
) -> bool:
    """Whether one more candidate is expected to gain more than its price.

    rewards: the finite rewards of the candidates that have ended. running: candidates that have not; while too little
    is known to say, what they bring is waited for. pruned: candidates that gained nothing, as the next
    one may.
    """
    if not budget.price_per_candidate:
        return True
    if len(rewards) < max(1, budget.min_n or 0):
        return len(rewards) + running < max(1, budget.min_n or 0)
    gain = expected_gain(rewards, reward_prior) * len(rewards) / (len(rewards) + pruned)
    return gain > budget.price_per_candidate if math.isfinite(gain) else running == 0


def expected_gain(rewards: Sequence[float], reward_prior: RewardPrior) -> float:
    """E[max(X - best, 0)] for the next reward X, in units of reward; infinite while too little is known.

    rewards: (m,) finite, m >= 1. X is Student-t distributed with nu = nu0 + m - 1 degrees of freedom around their mean,
    with the scale s sqrt(1 + 1/m), where nu s^2 is the sum of squares of these rewards and of the prior. For T standard
    Student-t, E[max(T - z, 0)] = (nu + z^2)/(nu - 1) f(z) - z (1 - F(z)), by integrating t f(t).
    """
    prior_degrees = min(reward_prior.degrees, PRIOR_DEGREES)
    prior_squares = prior_degrees * reward_prior.squares / reward_prior.degrees if reward_prior.degrees else 0.0
    m, degrees = len(rewards), prior_degrees + len(rewards) - 1
    variance = (prior_squares + _squares(rewards)) / degrees if degrees > 1 else 0.0
    if not 0 < variance < math.inf:
        return math.inf
    scale = math.sqrt(variance * (1 + 1 / m))
    z = (max(rewards) - fmean(rewards)) / scale
    above = float(stdtr(degrees, -z))
    return scale * ((degrees + z * z) / (degrees - 1) * _density(z, degrees) - z * above)


def early_reason(budget: Budget, started: int, n: int) -> SelectionReason | None:
    """Why a request whose candidates have all ended has fewer than n of them; None: it has not."""
    return SelectionReason.ADAPTIVE if budget.price_per_candidate is not None and started < n else None


def _squares(rewards: Sequence[float]) -> float:
    """Infinite for rewards so large that floats cannot hold it; a reward function may give any finite number."""
    try:
        mean = fmean(rewards)
        return sum((reward - mean) ** 2 for reward in rewards)
    except OverflowError:
        return math.inf


def _density(z: float, degrees: float) -> float:
    """Of the standard Student-t distribution."""
    logarithm = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    return math.exp(logarithm - (degrees + 1) / 2 * math.log1p(z * z / degrees)) / math.sqrt(degrees * math.pi)

"""KL figures of best-of-n against brute force on small discrete policies."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bon_server.estimators import kl_bound, kl_winner_probability


def exact_kl(probabilities: list[float], n: int) -> float:
    """KL(best-of-n || policy) for outcomes listed from worst to best, without ties: sum of q log(q / p)."""
    total = below = 0.0
    for p in probabilities:
        q = (below + p) ** n - below**n
        below += p
        total += q * math.log(q / p) if q > 0 else 0.0
    return total


def test_known_values() -> None:
    assert kl_bound(1) == 0.0
    assert kl_bound(8) == pytest.approx(1.204, abs=5e-4)
    assert exact_kl([0.15, 0.85], 8) == pytest.approx(0.1625, abs=5e-5)


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8), st.integers(1, 64))
def test_the_bound_is_one(weights: list[float], n: int) -> None:
    probabilities = [weight / sum(weights) for weight in weights]
    assert exact_kl(probabilities, n) <= kl_bound(n) + 1e-9


def test_many_equally_likely_outcomes_reach_the_bound() -> None:
    assert exact_kl([1e-5] * 100_000, 8) == pytest.approx(kl_bound(8), abs=1e-3)


@given(st.integers(1, 256), st.floats(-60.0, 0.0))
def test_the_estimate_lies_between_zero_and_the_bound(n: int, winner_logprob: float) -> None:
    estimate = kl_winner_probability(n, winner_logprob)
    assert -1e-9 <= estimate <= kl_bound(n) + 1e-9


def test_the_estimate_at_its_ends() -> None:
    assert kl_winner_probability(8, 0.0) == 0.0
    assert kl_winner_probability(1, -3.0) == 0.0
    assert kl_winner_probability(8, -40.0) == pytest.approx(kl_bound(8), abs=1e-9)
    assert kl_winner_probability(8, -1000.0) == pytest.approx(kl_bound(8), abs=1e-9)
    assert kl_winner_probability(8, math.log(0.85)) < 0.3 < kl_bound(8)


@pytest.mark.parametrize("bad", [0.1, math.nan])
def test_probabilities_above_one_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="winner_logprob"):
        kl_winner_probability(4, bad)


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="n = 0"):
        kl_bound(0)

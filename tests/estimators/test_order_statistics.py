"""reward@k against enumeration of every subset, with heavy ties, and against fresh samples."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bon_server.estimators import (
    order_weights,
    pass_at_k,
    reward_at_k,
    reward_at_k_ragged,
    reward_beyond,
    vote_counts,
    win_rate_at_k,
    win_rate_bound,
)
from tests.estimators.enumeration import best_of_every_subset, wins_of_every_subset

FEW = st.integers(0, 3).map(float)
"""Ranks with heavy ties."""


@st.composite
def ranked(draw: st.DrawFn, at_least: int = 1) -> tuple[list[float], list[float]]:
    """Ranks and values of one prompt."""
    n = draw(st.integers(at_least, 8))
    return (
        draw(st.lists(FEW, min_size=n, max_size=n)),
        draw(st.lists(st.floats(-10, 10), min_size=n, max_size=n)),
    )


@settings(max_examples=1_000, deadline=None)
@given(ranked())
def test_every_subset_gives_the_same(prompt: tuple[list[float], list[float]]) -> None:
    ranks, values = prompt
    expected = [best_of_every_subset(ranks, values, k) for k in range(1, len(ranks) + 1)]
    assert reward_at_k(ranks, values)[0] == pytest.approx(expected, abs=1e-12)
    expected = [best_of_every_subset(ranks, ranks, k) for k in range(1, len(ranks) + 1)]
    assert reward_at_k(ranks)[0] == pytest.approx(expected, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(ranked(at_least=2))
def test_every_subset_and_other_sample_gives_the_same_win_rate(prompt: tuple[list[float], list[float]]) -> None:
    ranks, values = prompt
    expected = [wins_of_every_subset(ranks, values, k) for k in range(1, len(ranks))]
    assert win_rate_at_k(ranks, values)[0] == pytest.approx(expected, abs=1e-12)
    for k, rate in enumerate(win_rate_at_k(ranks)[0], start=1):
        assert rate <= win_rate_bound(k) + 1e-12


def test_without_ties_the_win_rate_is_its_bound() -> None:
    rates = win_rate_at_k(np.random.default_rng(0).normal(size=(5, 9)))
    assert rates == pytest.approx(np.tile([win_rate_bound(k) for k in range(1, 9)], (5, 1)))


def test_prompts_together_give_what_each_gives_alone() -> None:
    random = np.random.default_rng(1)
    ranks, values = random.integers(0, 4, size=(50, 7)).astype(float), random.normal(size=(50, 7))
    alone = np.concatenate([reward_at_k(one, other) for one, other in zip(ranks, values, strict=True)])
    assert reward_at_k(ranks, values) == pytest.approx(alone, abs=1e-12)  # BLAS sums in another order


def test_prompts_with_different_numbers_of_samples() -> None:
    result = reward_at_k_ragged([[1.0, 2.0, 3.0], [], [5.0]], [[1.0, 0.0, 0.0], [], [7.0]])
    assert result[:, 0] == pytest.approx([1 / 3, np.nan, 7.0], nan_ok=True)
    assert result[0, 1:] == pytest.approx([0.0, 0.0], abs=1e-15)
    assert np.isnan(result[1:, 1:]).all()


def test_pass_at_k_is_one_less_the_chance_of_none() -> None:
    right = np.array([[True] * 3 + [False] * 17])
    expected = [1 - comb(17, k) / comb(20, k) for k in range(1, 21)]
    assert pass_at_k(right)[0] == pytest.approx(expected, abs=1e-14)


def test_twelve_thousand_samples_neither_overflow_nor_cancel() -> None:
    n = 12_600
    ks = np.array([1, 2, 100, 6_300, n - 1, n])
    weights = order_weights(n, ks)
    assert weights.sum(axis=0) == pytest.approx(1.0, abs=1e-10)
    assert (weights >= 0).all()
    exact = [comb(12_000, k - 1) / comb(n, k) for k in ks.tolist()]  # position 12,001: integers, exact
    assert weights[12_000] == pytest.approx(exact, rel=1e-9)
    positions = np.arange(1.0, n + 1)  # the expected maximum of k of the numbers 1..n is k (n + 1) / (k + 1)
    assert reward_at_k(positions)[0] == pytest.approx(positions * (n + 1) / (positions + 1), rel=1e-9)


def test_fresh_samples_agree() -> None:
    """Unbiased: the mean over 20,000 prompts lies within 5 standard errors of the truth (false alarms below 1e-5)."""
    random = np.random.default_rng(2)
    ranks = random.integers(0, 5, size=(20_000, 6)).astype(float)
    values = ranks + random.normal(size=ranks.shape)
    estimates = reward_at_k(ranks, values)
    for k in range(1, 7):
        truth = sum(level * (((level + 1) / 5) ** k - (level / 5) ** k) for level in range(5))
        error = estimates[:, k - 1].std() / np.sqrt(len(estimates))
        assert abs(estimates[:, k - 1].mean() - truth) < 5 * error


def test_majority_vote_is_the_case_of_ranking_by_votes() -> None:
    answers = ["4", "5", "4", None, "5", "4"]
    right = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    assert reward_at_k(vote_counts(answers), right, [6])[0, 0] == 1.0
    assert reward_at_k(vote_counts(["4", "5", None]), [1.0, 0.0, 0.0], [3])[0, 0] == 0.5


def test_extrapolation_goes_on_from_the_samples_and_falls_short() -> None:
    random = np.random.default_rng(3)
    rewards, more = random.normal(size=(4_000, 16)), random.normal(size=(4_000, 32))
    assert reward_beyond(rewards, 16) == pytest.approx(rewards.max(axis=1))
    guess, truth, start = (one.mean() for one in (reward_beyond(rewards, 32), more.max(axis=1), rewards.max(axis=1)))
    assert start < guess < truth  # 1.77, 2.07
    assert guess - start > 0.3 * (truth - start)
    with pytest.raises(ValueError, match="at least the 16 samples"):
        reward_beyond(rewards, 15)


@pytest.mark.parametrize(
    ("ranks", "values", "ks", "complaint"),
    [
        ([[1.0, np.nan]], None, None, "1 of 2 are not finite"),
        ([[1.0, 2.0]], [[1.0]], None, "one value for each"),
        ([[1.0, 2.0]], None, [3], "1 <= k <= n"),
        ([[1.0, 2.0]], None, [0], "1 <= k <= n"),
        ([[]], None, None, "at least one sample"),
    ],
)
def test_refusals(
    ranks: list[list[float]], values: list[list[float]] | None, ks: list[int] | None, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        reward_at_k(ranks, values, ks)

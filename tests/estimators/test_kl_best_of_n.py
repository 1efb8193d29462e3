"""KL figures of best-of-n against brute force on small discrete policies."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bon_server.estimators import (
    kl_any_selection_bound,
    kl_bound,
    kl_discrete,
    kl_exact_plugin,
    kl_soft_bound,
    kl_winner_probability,
    kl_winner_probability_at_k,
    soft_value,
    soft_weights,
)


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


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 64))
def test_known_distributions_and_samples_agree_with_brute_force(counts: list[int], n: int) -> None:
    probabilities = [count / sum(counts) for count in counts]
    expected = pytest.approx(exact_kl(probabilities, n), abs=1e-12)
    assert kl_discrete(probabilities, n) == expected
    rewards = [float(level) for level, count in enumerate(counts) for _ in range(count)]
    random.Random(n).shuffle(rewards)
    assert kl_exact_plugin(rewards, [n])[0, 0] == expected


def test_prompts_together_give_what_each_gives_alone() -> None:
    rewards = np.random.default_rng(0).integers(0, 4, size=(30, 8)).astype(float)
    alone = np.concatenate([kl_exact_plugin(one) for one in rewards])
    assert kl_exact_plugin(rewards) == pytest.approx(alone, abs=1e-12)


def test_many_samples_without_ties_come_close_to_the_bound() -> None:
    assert kl_exact_plugin(np.arange(12_600.0), [1, 100])[0] == pytest.approx([0.0, kl_bound(100)], rel=1e-3)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(1, 4))
def test_the_kl_of_texts_is_that_of_rewards(levels: list[int], n: int) -> None:
    """Best-of-n over texts by listing every draw, ties to the lowest index; the texts are equally likely."""
    texts = len(levels)
    chosen = [0.0] * texts
    for draw in itertools.product(range(texts), repeat=n):
        chosen[max(draw, key=lambda text: levels[text])] += texts**-n
    by_listing = sum(q * math.log(q * texts) for q in chosen if q > 0)
    by_reward = [levels.count(level) / texts for level in sorted(set(levels))]
    assert kl_discrete(by_reward, n) == pytest.approx(by_listing, abs=1e-9)


def test_the_winners_of_every_subset_are_averaged() -> None:
    logprobs = [-1.0, -2.0, -3.0]
    result = kl_winner_probability_at_k([0.0, 1.0, 1.0], logprobs)[0]
    assert result[0] == 0.0
    two, three = (kl_winner_probability(2, logprob) for logprob in logprobs[1:])
    assert result[1] == pytest.approx((two + three) / 2)
    assert result[2] == pytest.approx(np.mean([kl_winner_probability(3, logprob) for logprob in logprobs[1:]]))


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6), st.floats(0.05, 5))
def test_bounds_that_always_hold(rewards: list[float], temperature: float) -> None:
    n = len(rewards)
    assert kl_bound(n) <= kl_any_selection_bound(n)
    assert -1e-12 <= kl_soft_bound(rewards, temperature)[0] <= kl_any_selection_bound(n) + 1e-12


def test_soft_choice_of_two_lies_below_its_bound() -> None:
    """Two equally likely texts with rewards 0 and 1, n = 2: every draw of samples and index listed."""
    temperature = 0.5
    weight = soft_weights([0.0, 1.0], temperature)[0, 1]
    better = 0.25 + 0.5 * weight
    exact = better * math.log(2 * better) + (1 - better) * math.log(2 * (1 - better))
    bound = np.mean([kl_soft_bound(samples, temperature)[0] for samples in itertools.product([0.0, 1.0], repeat=2)])
    assert exact <= bound
    assert soft_value([0.0, 1.0], temperature)[0] == pytest.approx(weight)


def test_distributions_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        kl_discrete([0.5, 0.4], 2)
    with pytest.raises(ValueError, match="temperature"):
        soft_value([0.0, 1.0], 0.0)
    with pytest.raises(ValueError, match="above 0"):
        kl_winner_probability_at_k([0.0, 1.0], [0.1, -1.0])

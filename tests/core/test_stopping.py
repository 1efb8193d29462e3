"""When to stop: the expected gain against simulation, and what the rules make of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bon_server.core.stopping import (
    NO_PRIOR,
    SMALLEST_WAVE,
    RewardPrior,
    early_reason,
    expected_gain,
    reached,
    wave,
    worth_one_more,
)
from bon_server.core.types import Budget, SelectionReason

ADAPTIVE = Budget(price_per_candidate=0.1, min_n=2)
FREE = Budget(price_per_candidate=0.0)
finite = st.floats(-100, 100)


@pytest.mark.parametrize(
    ("rewards", "reward_prior"),
    [
        ([0.3, -1.2, 0.8, 0.1, 0.5], NO_PRIOR),
        ([0.3], RewardPrior(squares=12.0, degrees=6.0)),
        ([2.0, 2.0, 2.0], RewardPrior(squares=50.0, degrees=50.0)),
        ([0.0, 1.0, 5.0, -3.0], RewardPrior(squares=300.0, degrees=90.0)),
    ],
)
def test_the_expected_gain_is_that_of_a_simulation(rewards: list[float], reward_prior: RewardPrior) -> None:
    """Draws variance, mean and reward in turn from the posterior; false alarms: below 1 in 10,000 (4 sigma)."""
    draw = np.random.default_rng(7)
    m, mean = len(rewards), float(np.mean(rewards))
    prior = min(reward_prior.degrees, 8.0)
    squares = float(np.sum((np.array(rewards) - mean) ** 2)) + (
        prior * reward_prior.squares / reward_prior.degrees if reward_prior.degrees else 0.0
    )
    draws = 400_000
    variance = squares / draw.chisquare(prior + m - 1, draws)
    means = mean + np.sqrt(variance / m) * draw.standard_normal(draws)
    gains = np.maximum(means + np.sqrt(variance) * draw.standard_normal(draws) - max(rewards), 0.0)
    error = gains.std() / math.sqrt(draws)
    assert abs(expected_gain(rewards, reward_prior) - gains.mean()) < 4 * error


@given(st.lists(finite, min_size=3, max_size=9, unique=True), st.floats(-10, 10), st.floats(0.1, 10))
def test_the_expected_gain_moves_and_scales_with_the_rewards(rewards: list[float], shift: float, scale: float) -> None:
    if np.std(rewards) < 1e-6:
        return
    gain = expected_gain(rewards, NO_PRIOR)
    moved = expected_gain([shift + scale * reward for reward in rewards], NO_PRIOR)
    assert moved == pytest.approx(scale * gain, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("rewards", [[1.0], [1.0, 2.0], [1.0, 1.0, 1.0]])
def test_where_too_little_is_known_the_running_ones_are_waited_for(rewards: list[float]) -> None:
    assert expected_gain(rewards, NO_PRIOR) == math.inf
    known_enough = len(rewards) >= 2
    assert worth_one_more(ADAPTIVE, rewards, NO_PRIOR, running=0)
    assert not worth_one_more(ADAPTIVE, rewards, NO_PRIOR, running=1) or not known_enough


def test_equal_rewards_are_the_end_where_others_spread_little() -> None:
    assert not worth_one_more(ADAPTIVE, [1.0] * 6, RewardPrior(squares=0.1, degrees=100.0), running=3)


def test_the_minimum_is_kept_whatever_the_gain() -> None:
    known = RewardPrior(squares=1e-6, degrees=100.0)
    assert worth_one_more(Budget(price_per_candidate=1.0, min_n=3), [0.0, 0.0], known, running=0)
    assert not worth_one_more(Budget(price_per_candidate=1.0, min_n=3), [0.0, 0.0, 0.0], known, running=0)
    assert not worth_one_more(Budget(price_per_candidate=1.0, min_n=3), [0.0, 0.0], known, running=1)


def test_a_higher_price_never_samples_more() -> None:
    rewards = [0.3, -1.2, 0.8, 0.1]
    prices = (0.01, 0.1, 1, 10)
    worth = [worth_one_more(Budget(price_per_candidate=each), rewards, NO_PRIOR, running=2) for each in prices]
    assert worth == sorted(worth, reverse=True)
    assert worth[0] and not worth[-1]


def test_the_spread_is_that_of_the_rewards_around_their_own_means() -> None:
    draw = np.random.default_rng(3)
    reward_prior = NO_PRIOR
    for _ in range(300):
        reward_prior = reward_prior.after((draw.normal(draw.normal(0, 50), 2.0, size=8)).tolist())
    assert reward_prior.squares / reward_prior.degrees == pytest.approx(4.0, rel=0.2)
    assert reward_prior.after([3.0]) == reward_prior


HUGE = [[1e200, -1e200, 0.0], [1.7e308, 1.7e308, -1.7e308], [1e-200, 0.0, 0.0]]


@pytest.mark.parametrize("rewards", HUGE)
def test_rewards_beyond_what_can_be_squared_say_too_little_and_teach_nothing(rewards: list[float]) -> None:
    """They are finite, so a reward function may give them; the square of the first ones is not."""
    assert expected_gain(rewards, NO_PRIOR) == math.inf
    assert worth_one_more(ADAPTIVE, rewards, NO_PRIOR, running=0)
    known = RewardPrior(squares=3.0, degrees=3.0)
    assert math.isfinite(known.after(rewards).squares)
    assert math.isfinite(expected_gain([0.0, 1.0], known.after(rewards)))


@pytest.mark.parametrize(("min_n", "n", "size"), [(None, 16, SMALLEST_WAVE), (6, 16, 6), (6, 3, 3), (1, 2, 2)])
def test_an_adaptive_request_starts_with_a_wave(min_n: int | None, n: int, size: int) -> None:
    assert wave(Budget(price_per_candidate=1.0, min_n=min_n), n, share=128) == size


def test_without_a_price_all_are_started_and_none_is_too_many() -> None:
    assert wave(Budget(stop_at_reward=1.0), 16, share=1) == 16
    assert worth_one_more(Budget(), [1.0] * 50, NO_PRIOR, running=0)
    assert early_reason(Budget(), 16, 16) is None


def test_a_reward_is_reached_when_it_is_as_high() -> None:
    assert [reached(Budget(stop_at_reward=1.0), reward) for reward in (None, 0.9, 1.0, 2.0)] == [
        False,
        False,
        True,
        True,
    ]
    assert not reached(Budget(), 1e9)


def test_an_adaptive_request_that_took_all_has_no_early_reason() -> None:
    assert early_reason(ADAPTIVE, 16, 16) is None
    assert early_reason(ADAPTIVE, 15, 16) is SelectionReason.ADAPTIVE


def test_what_costs_nothing_is_sampled_a_wave_at_a_time() -> None:
    assert [wave(FREE, 40, share) for share in (1, 4, 16, 20, 128)] == [SMALLEST_WAVE, 4, 13, 13, 13]
    assert wave(FREE, 5, share=128) == SMALLEST_WAVE
    assert worth_one_more(FREE, [], NO_PRIOR, running=3)
    assert worth_one_more(FREE, [1.0, 1.0], NO_PRIOR, running=3)


def test_pruned_candidates_make_the_next_one_less_worth() -> None:
    rewards = [0.3, -1.2, 0.8, 0.1, 0.5]
    gain = expected_gain(rewards, NO_PRIOR)
    budget = Budget(price_per_candidate=0.75 * gain)
    assert worth_one_more(budget, rewards, NO_PRIOR, running=1)
    assert not worth_one_more(budget, rewards, NO_PRIOR, running=1, pruned=5)

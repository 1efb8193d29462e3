"""The figures of `bon demo evaluate` against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bon_server.demo.evaluate import figures, pair_counts

REWARDS = np.array([[0.1, 0.9, 0.5], [0.7, 0.7, 0.2], [0.3, 0.2, 0.1]])
RIGHT = np.array([[False, True, False], [False, True, True], [False, False, False]])
ANSWERS: list[list[str | None]] = [["1", "2", "1"], ["3", "4", "4"], [None, None, None]]


def _value(name: str) -> float | list[float] | None:
    return figures(REWARDS, RIGHT, ANSWERS, seed=0)[name]["value"]


def test_by_hand() -> None:
    assert _value("single_sample_accuracy") == pytest.approx(3 / 9, abs=1e-4)
    assert _value("best_of_n_accuracy") == pytest.approx(1 / 3, abs=1e-4)  # the tie goes to index 0: wrong
    assert _value("best_of_n_over_single_sample") == pytest.approx(1.0)
    assert _value("pass_at_n") == pytest.approx(2 / 3, abs=1e-4)
    assert _value("majority_vote_accuracy") == pytest.approx(1 / 3, abs=1e-4)
    assert _value("pair_accuracy") == pytest.approx((2 + 0.5) / 4)  # 2 of 2, then a tie and a loss
    assert _value("pair_accuracy_mean_over_problems") == pytest.approx((1 + 0.25) / 2)


def test_intervals_hold_the_value_and_repeat() -> None:
    first, second = (figures(REWARDS, RIGHT, ANSWERS, seed=3) for _ in range(2))
    assert first == second
    for figure in first.values():
        low, high = figure["ci95"]  # type: ignore[misc]
        assert low <= figure["value"] <= high  # type: ignore[operator]


def test_nothing_right_is_undefined_not_a_number() -> None:
    found = figures(REWARDS, np.zeros_like(RIGHT), ANSWERS, seed=0)
    assert found["pair_accuracy"] == {"value": None, "ci95": None}
    assert found["best_of_n_over_single_sample"]["value"] is None


def test_a_reward_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 9 are not finite"):
        figures(np.where(REWARDS == 0.9, np.nan, REWARDS), RIGHT, ANSWERS, seed=0)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=8))
def test_pair_counts_against_enumeration(row: list[tuple[int, bool]]) -> None:
    rewards, right = np.array([[float(r) for r, _ in row]]), np.array([[ok for _, ok in row]])
    won, pairs = pair_counts(rewards, right)
    duels = [(a, b) for a, a_right in row for b, b_right in row if a_right and not b_right]
    assert pairs[0] == len(duels)
    assert won[0] == sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in duels)

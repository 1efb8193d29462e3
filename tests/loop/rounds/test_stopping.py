"""When rounds stop, and which one is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bon_server.loop.rounds.options import Stops
from bon_server.loop.rounds.run import Point, best_round, why_stop

STOPS = Stops(patience=2, min_distinct=0.5, min_entropy=0.2)


def _points(*rewards: float) -> list[Point]:
    return [Point(reward) for reward in rewards]


def test_it_goes_on_while_the_reward_rises() -> None:
    points = _points(0.1, 0.2, 0.3, 0.4)
    assert [why_stop(points[: end + 1], STOPS) for end in range(4)] == [None] * 4
    assert best_round(points, STOPS) == 3


def test_the_first_policy_never_stops_it() -> None:
    assert why_stop([Point(0.0, variety={"distinct_1": 0.0})], STOPS) is None


def test_patience_ends_after_rounds_without_a_new_best() -> None:
    points = _points(0.1, 0.3, 0.2, 0.25)
    assert why_stop(points[:3], STOPS) is None
    assert why_stop(points, STOPS) == "patience: 2 rounds without a held-out reward above 0.3"
    assert best_round(points, STOPS) == 1


def test_an_equal_reward_is_no_new_best() -> None:
    points = _points(0.1, 0.3, 0.3)
    assert best_round(points, STOPS) == 1
    assert why_stop(points, Stops(patience=1)) is not None


def test_a_fall_beyond_its_interval_ends_it_at_once() -> None:
    points = [*_points(0.1, 0.3), Point(0.2, below_best=True)]
    assert why_stop(points, STOPS) == "fell: the held-out reward fell to 0.2 from 0.3"
    assert best_round(points, STOPS) == 1


@pytest.mark.parametrize(
    ("name", "least"), [("distinct_1", 0.5), ("distinct_2", 0.5), ("distinct_3", 0.5), ("entropy_nats", 0.2)]
)
def test_each_figure_of_diversity_has_a_guard(name: str, least: float) -> None:
    def points(share: float) -> list[Point]:
        return [Point(0.1, variety={name: 0.8}), Point(0.9, variety={name: 0.8 * share})]

    assert why_stop(points(least + 0.01), STOPS) is None
    stopped = why_stop(points(least - 0.01), STOPS)
    assert stopped is not None
    assert stopped.startswith(f"diversity: {name} fell to")
    assert best_round(points(least - 0.01), STOPS) == 0
    assert why_stop(points(0.0), Stops(min_distinct=0, min_entropy=0)) is None


def test_a_figure_that_is_not_known_guards_nothing() -> None:
    assert why_stop([Point(0.1), Point(0.2, variety={"entropy_nats": 0.0})], STOPS) is None
    assert why_stop([Point(0.1, variety={"entropy_nats": 1.0}), Point(0.2)], STOPS) is None


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.integers(1, 4))
def test_it_stops_exactly_when_the_best_is_old(rewards: list[float], patience: int) -> None:
    points = _points(*rewards)
    age = len(rewards) - 1 - rewards.index(max(rewards))
    assert best_round(points, STOPS) == rewards.index(max(rewards))
    assert (why_stop(points, Stops(patience=patience)) is not None) == (age >= patience)

"""Headroom of small logs whose figures can be told by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bon_server.evaluate.curve_sums import CurveOptions
from bon_server.evaluate.headroom import headroom
from bon_server.evaluate.reading import LogSource
from tests.evaluate.logs import imported, made_lines, written
from tests.log.records import record, scored
from tests.offline.grouped_files import line

LINES = [
    # the reward finds the one right answer; the longest has the most reward
    line("found", [3.0, 1.0, 2.0], scores={"gold": [1, 0, 0]}, responses=["aaaa", "a", "aaa"]),
    # it is tied between a right and a wrong one
    line("tied", [1.0, 1.0, 0.0], scores={"gold": [1, 0, 0]}, finish_reasons=["length", "stop", "stop"]),
    # it does not matter, and there is no spread
    line("all wrong", [0.0, 0.0, 0.0], scores={"gold": [0, 0, 0]}, responses=["x", "x", "y"]),
]


def figures(log: Path, **options: Any) -> dict[str, Any]:
    return headroom(CurveOptions(LogSource((log,)), **options))


def test_figures_by_hand(tmp_path: Path) -> None:
    document = figures(imported(tmp_path, LINES), value="gold")
    expected = {
        "prompts_with_spread": 2 / 3,
        "prompts_tied_for_best": 2 / 3,
        "tied_pairs": 4 / 9,
        "duplicates": 1 / 9,
        "truncated": 1 / 3,
        "winners_truncated": 1.0,
        "best_over_mean_reward": (1 + 1 / 3) / 3,
        "value_of_chosen": 1.5 / 3,
        "value_of_random": (1 / 3 + 1 / 3) / 3,
        "value_of_oracle": 2 / 3,
        "oracle_gap": 0.5 / 3,
        "prompts_where_it_matters": 2 / 3,
        "right_where_it_matters": 0.75,
        "random_right_where_it_matters": 1 / 3,
        "pair_accuracy": 3.5 / 4,
    }
    assert {name: document[name]["value"] for name in expected} == pytest.approx(expected)


def test_length_goes_with_reward(tmp_path: Path) -> None:
    document = figures(imported(tmp_path, LINES[:1]))
    assert document["reward_length_correlation"]["value"] == pytest.approx(9 / (2 * 42) ** 0.5, abs=1e-12)
    assert document["value_of_chosen"] == {"value": None, "ci": None}


def test_intervals_hold_their_figure(tmp_path: Path) -> None:
    document = figures(imported(tmp_path, made_lines(60)), value="gold")
    for name in ("pair_accuracy", "value_of_chosen", "right_where_it_matters"):
        low, high = document[name]["ci"]
        assert low < document[name]["value"] < high
    assert document["right_where_it_matters"]["ci"][0] > document["random_right_where_it_matters"]["value"]


def test_what_one_prompt_alone_says_has_no_interval(tmp_path: Path) -> None:
    """Of ten prompts only one has answers that differ in value."""
    same = [line(str(i), [0.1 * i, 1.0], scores={"gold": [1, 1]}) for i in range(9)]
    document = figures(imported(tmp_path, [*same, line("x", [0.0, 1.0], scores={"gold": [0, 1]})]), value="gold")
    assert document["right_where_it_matters"] == {"value": 1.0, "ci": None}
    assert document["prompts_where_it_matters"]["ci"] is not None


def test_weeks_begin_on_monday(tmp_path: Path) -> None:
    times = [datetime(2026, 11, 22, 23, 59, tzinfo=UTC), datetime(2026, 11, 23, 0, 1, tzinfo=UTC)]
    records = [record(f"r{i}", [float(i), i + 2.0], created_at=time) for i, time in enumerate(times)]
    weeks = figures(written(tmp_path, records))["weeks"]
    assert [(week["week_of"], week["requests"], week["mean_reward"]) for week in weeks] == [
        ("2026-11-16", 1, 1.0),
        ("2026-11-23", 1, 2.0),
    ]


def test_which_n_is_worth_its_tokens(tmp_path: Path) -> None:
    records = [record("r", candidates=tuple(scored(i, float(i), completion_tokens=100) for i in range(4)))]
    options = CurveOptions(LogSource((written(tmp_path, records),)))
    answer = headroom(options, price_per_1000_tokens=2.0)["which_n"]
    # of the numbers 0..3 the best of k is 5 k / (k + 1) - 1 on average, a sample costs 0.2
    gains = [5 * k / (k + 1) - 5 * (k - 1) / k for k in range(2, 5)]
    assert [step["gain"] for step in answer["steps"]] == pytest.approx(gains)
    assert [step["gain_per_1000_tokens"] for step in answer["steps"]] == pytest.approx([10 * gain for gain in gains])
    assert answer["n_at_price"] == 4
    assert headroom(options, price_per_1000_tokens=5.0)["which_n"]["n_at_price"] == 2
    assert answer["n_for_90_percent_of_gain"] == 4


def test_which_n_is_not_led_astray_by_requests_with_fewer_samples(tmp_path: Path) -> None:
    """From k = 3 on there are only requests with little reward and value, but each of them gains up to its last."""
    few = [line(f"few{i}", [100.0, 101.0], scores={"gold": [50, 50]}) for i in range(10)]
    many = [line(f"many{i}", [*range(8)], scores={"gold": [*range(8)]}) for i in range(10)]
    answer = figures(imported(tmp_path, [*few, *many]), value="gold")["which_n"]
    assert answer["n_for_90_percent_of_gain"] == 6  # 1, 1.75, 2.2, 2.5, 2.71, ... of 3.0
    assert answer["n_with_highest_value"] == 8


def test_merged_requests_have_no_weeks(tmp_path: Path) -> None:
    log = imported(tmp_path, [*LINES, LINES[0] | {"tags": {"again": "yes"}}])
    document = headroom(CurveOptions(LogSource((log,), merge=True)))
    assert (document["prompts"], document["weeks"]) == (3, [])

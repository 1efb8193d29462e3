"""Two logs on the prompts they share."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from bon_server.core.errors import LogError
from bon_server.core.types import Budget
from bon_server.evaluate.compare import compare
from bon_server.evaluate.curve_sums import CurveOptions
from bon_server.evaluate.reading import LogSource
from tests.evaluate.independent import mean_at
from tests.evaluate.logs import imported, made_lines, written
from tests.log.records import record
from tests.offline.grouped_files import line


def compared(a: Path, b: Path, **options: Any) -> dict[str, Any]:
    return compare(CurveOptions(LogSource(()), **options), a, b)


def test_only_shared_prompts_count_and_each_is_its_own_control(tmp_path: Path) -> None:
    before, after = made_lines(40), made_lines(45, seed=1, gain=0.3)[5:]
    document = compared(imported(tmp_path, before, "a"), imported(tmp_path, after, "b"), value="gold")
    assert [document[name] for name in ("prompts", "only_a", "only_b")] == [35, 5, 5]
    for row in document["curve"]:
        k = row["k"]
        in_a, in_b = before[5:], after[:35]
        assert (row["a"], row["b"]) == pytest.approx((mean_at(in_a, k), mean_at(in_b, k)), abs=1e-12)
        golds = mean_at(in_b, k, "gold") - mean_at(in_a, k, "gold")
        assert row["value_difference"] == pytest.approx(golds, abs=1e-12)
        assert row["difference_ci"][0] < row["b"] - row["a"] < row["difference_ci"][1]
    assert document["curve"][0]["value_difference_ci"][0] > 0  # 30 points more, 35 prompts x 6


def test_pairing_takes_the_differences_between_prompts_out(tmp_path: Path) -> None:
    """Prompts differ by hundreds, the two logs by exactly one."""
    lines = [line(str(i), [100.0 * i, 100.0 * i + 2]) for i in range(10)]
    more = [line(str(i), [100.0 * i + 1, 100.0 * i + 3]) for i in range(10)]
    row = compared(imported(tmp_path, lines, "a"), imported(tmp_path, more, "b"))["curve"][0]
    assert row["difference"] == pytest.approx(1.0)
    assert row["difference_ci"] == pytest.approx([1.0, 1.0])
    assert row["a_ci"][1] - row["a_ci"][0] > 100


def test_the_win_rate_is_over_all_pairs(tmp_path: Path) -> None:
    a, b = [1.0, 2.0, 2.0], [0.0, 2.0, 3.0]
    rows = compared(imported(tmp_path, [line("x", a)], "a"), imported(tmp_path, [line("x", b)], "b"))["curve"]
    wins = [[(one > other) + 0.5 * (one == other) for other in a] for one in b]
    assert rows[0]["win_rate"] == pytest.approx(fmean(map(fmean, wins)))
    assert rows[2]["win_rate"] == 1.0


def test_stopped_requests_are_left_out(tmp_path: Path) -> None:
    a = written(tmp_path, [record("r", [1.0]), record("s", [9.0], budget=Budget(stop_at_reward=1.0))], "a")
    document = compared(a, written(tmp_path, [record("r", [2.0])], "b"))
    assert (document["curve"][0]["a"], document["left_out"]["stopped"]) == (1.0, 1)


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a = imported(tmp_path, made_lines(2), "a")
    with pytest.raises(LogError, match="rm and tuned"):
        compared(a, imported(tmp_path, made_lines(2), "b", reward_model="tuned"))
    with pytest.raises(LogError, match="no prompt in common: 2 and 1"):
        compared(a, imported(tmp_path, [line("else", [1.0])], "c"))

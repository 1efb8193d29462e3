"""The curve of a log against another calculation of it, and what it refuses to mix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bon_server.core.errors import ConfigError, LogError
from bon_server.core.types import Budget, LogprobKind, ModelRef, Outcome, SelectionReason, SelectionRule
from bon_server.estimators import clusters, kl_bound, kl_winner_probability
from bon_server.evaluate import curve_sums
from bon_server.evaluate.compare import compare
from bon_server.evaluate.curve import curve
from bon_server.evaluate.curve_sums import CurveOptions, KlMethod, Ranked, Sample
from bon_server.evaluate.reading import LogSource
from tests.evaluate.independent import exact_kl, mean_at, scored
from tests.evaluate.logs import ODD_LINES, imported, made_lines, written
from tests.log.records import record
from tests.log.records import scored as scored_candidate
from tests.offline.grouped_files import line


def options(*logs: Path, **more: Any) -> CurveOptions:
    """Options; `merge` and `reward_model` go to the source."""
    source = {name: more.pop(name) for name in ("merge", "reward_model") if name in more}
    return CurveOptions(LogSource(logs, **source), **more)


def test_every_figure_is_that_of_another_calculation(tmp_path: Path) -> None:
    lines = [*ODD_LINES, *made_lines(20)]
    document = curve(options(imported(tmp_path, lines), value="gold"))
    usable = [rewards for rewards, _ in map(scored, lines) if rewards]
    assert document["prompts"] == len(usable) == 24
    assert [row["k"] for row in document["curve"]] == [1, 2, 3, 4, 5, 6]
    for row in document["curve"]:
        k = row["k"]
        assert row["prompts"] == sum(len(rewards) >= k for rewards in usable)
        assert row["reward"] == pytest.approx(mean_at(lines, k), abs=1e-12)
        assert row["value"] == pytest.approx(mean_at(lines, k, "gold"), abs=1e-12)
        assert row["reward_ci"][0] <= row["reward"] <= row["reward_ci"][1]
        expected = np.mean([exact_kl(rewards, k) for rewards in usable if len(rewards) >= k])
        assert row["kl_nats"] == pytest.approx(expected, abs=1e-12)
        assert row["kl_method"] == "exact-plugin"  # some rewards are tied
        assert row["kl_bound_nats"] == kl_bound(k) >= row["kl_nats"]
        assert row["tokens"] is None  # nobody counted
    counts = document["counts"]
    assert (counts["requests"], counts["candidates"]) == (25, 15 + 120)
    assert counts["ranked"] == sum(map(len, usable))
    assert (counts["prompts_with_ties"], counts["prompts_tied_for_best"]) == (1, 1)


def test_two_rewards_of_known_probability(tmp_path: Path) -> None:
    """The better of probability .85, n = 8: 0.1625 nats, where the bound says 1.204."""
    row = curve(options(imported(tmp_path, [line("binary", [1.0] * 85 + [0.0] * 15)])))["curve"][7]
    assert (row["k"], row["kl_method"]) == (8, "exact-plugin")
    assert row["kl_nats"] == pytest.approx(0.1625, abs=5e-5)
    assert row["kl_bound_nats"] == pytest.approx(1.204, abs=5e-4)
    assert row["reward_ci"] is None  # one prompt has no interval


def test_what_one_prompt_alone_says_has_no_interval(tmp_path: Path) -> None:
    lines = [line("long", [1.0, 2.0, 3.0]), line("a", [1.0, 4.0]), line("b", [2.0, 0.5])]
    rows = curve(options(imported(tmp_path, lines)))["curve"]
    assert [row["prompts"] for row in rows] == [3, 3, 1]
    assert [row["reward_ci"] is None for row in rows] == [False, False, True]


def test_without_ties_the_bound_is_the_figure(tmp_path: Path) -> None:
    log = imported(tmp_path, made_lines(5))
    row = curve(options(log))["curve"][3]
    assert (row["kl_method"], row["kl_nats"]) == ("bound", kl_bound(4))
    row = curve(options(log, kl_method=KlMethod.EXACT_PLUGIN))["curve"][3]
    assert row["kl_nats"] == pytest.approx(exact_kl([1, 2, 3, 4, 5, 6], 4))


def test_the_fit_is_of_gains_within_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From k = 3 on there are only requests with little value, but in each the best of more has more."""
    few = [line(f"few{i}", [0.0, 1.0], scores={"gold": [50, 50]}) for i in range(10)]
    many = [line(f"many{i}", [*range(8)], scores={"gold": [*range(8)]}) for i in range(10)]
    log = imported(tmp_path, [*few, *many])
    fit = curve(options(log, value="gold"))["fit"]
    assert fit["alpha_ci"][0] > 0
    monkeypatch.setattr("bon_server.evaluate.curve._COLUMNS_AT_ONCE", 3)
    assert curve(options(log, value="gold"))["fit"]["beta_ci"] == pytest.approx(fit["beta_ci"])


def test_winners_probabilities_and_tokens(tmp_path: Path) -> None:
    logprobs, kind = [-1.0, -2.0, -3.0], LogprobKind.SAMPLED
    candidates = tuple(
        scored_candidate(i, float(i), logprob=logprob, logprob_kind=kind, completion_tokens=10 * (i + 1))
        for i, logprob in enumerate(logprobs)
    )
    log = written(tmp_path, [record("r", candidates=candidates)], sealed=False)
    rows = curve(options(log, kl_method=KlMethod.WINNER_PROBABILITY))["curve"]
    assert rows[2]["kl_nats"] == pytest.approx(kl_winner_probability(3, -3.0))
    expected = kl_winner_probability(2, -2.0) / 3 + kl_winner_probability(2, -3.0) * 2 / 3
    assert rows[1]["kl_nats"] == pytest.approx(expected)
    assert [row["tokens"] for row in rows] == pytest.approx([20, 40, 60])


def test_any_number_can_be_ranked_by_and_reported(tmp_path: Path) -> None:
    lines = made_lines(8)
    log = imported(tmp_path, lines)
    by_gold = curve(options(log, rank_by="gold", value="length"))["curve"]
    swapped = [replace_scores(one) for one in lines]
    assert by_gold[2]["reward"] == pytest.approx(mean_at(swapped, 3))
    assert by_gold[2]["value"] == pytest.approx(3.0)  # every response has three characters


def replace_scores(one: dict[str, Any]) -> dict[str, Any]:
    return one | {"rewards": one["scores"]["gold"]}


def test_truncated_candidates_can_be_left_out(tmp_path: Path) -> None:
    log = imported(tmp_path, ODD_LINES[-1:])
    assert curve(options(log))["curve"][-1]["reward"] == 1.5
    kept = curve(options(log, drop_truncated=True))["curve"]
    assert (len(kept), kept[-1]["reward"]) == (2, 1.0)


def test_requests_of_one_prompt_are_merged_when_asked(tmp_path: Path) -> None:
    lines = [line("a", [1.0, 2.0]), line("a", [4.0]), line("b", [0.0, 3.0])]
    log = imported(tmp_path, lines)
    apart, together = curve(options(log)), curve(options(log, merge=True))
    assert (apart["prompts"], together["prompts"]) == (3, 2)
    assert [row["prompts"] for row in together["curve"]] == [2, 2, 1]
    assert together["curve"][0]["reward"] == pytest.approx((7 / 3 + 1.5) / 2)
    assert apart["curve"][0]["reward"] == pytest.approx((1.5 + 4.0 + 1.5) / 3)


@pytest.mark.parametrize(
    "fields",
    [
        {"budget": Budget(stop_at_reward=0.5)},
        {"budget": Budget(prune_fraction=0.5, prune_after_tokens=8)},
        {"budget": Budget(price_per_candidate=0.1)},
        {"selection_reason": SelectionReason.DEADLINE, "outcome": Outcome.PARTIAL},
        {"outcome": Outcome.CANCELLED},
    ],
)
def test_stopped_requests_are_no_independent_sample(tmp_path: Path, fields: dict[str, Any]) -> None:
    stopped = record("stopped", rewards=[5.0, 6.0], **fields)
    alone = curve(options(written(tmp_path, [stopped], "alone")))
    assert alone["sample"] == "stopped" and "no independent sample" in alone["warnings"][0]
    for row in alone["curve"]:
        assert row["reward"] is not None
        assert [row[name] for name in ("kl_nats", "kl_bound_nats", "kl_method")] == [None] * 3
    mixed = curve(options(written(tmp_path, [stopped, record("free")], "mixed")))
    assert (mixed["sample"], mixed["prompts"], mixed["counts"]["left_out"]["stopped"]) == ("independent", 1, 1)
    assert mixed["curve"][1]["reward"] == 0.5


def test_a_soft_choice_leaves_the_sample_independent(tmp_path: Path) -> None:
    soft = record("soft", rule=SelectionRule.SOFT, selection_temperature=1.0, selection_reason=SelectionReason.SOFT)
    assert curve(options(written(tmp_path, [soft])))["curve"][1]["kl_method"] == "bound"


def test_reward_models_are_not_mixed(tmp_path: Path) -> None:
    other = (ModelRef("reward", "another", "77"),)
    log = written(tmp_path, [record("a", [1.0]), record("b", [9.0], reward_models=other)])
    with pytest.raises(LogError, match=r"a-reward-model@1f2e and another@77; choose one with --reward-model"):
        curve(options(log))
    for name in ("another", "another@77"):
        document = curve(options(log, reward_model=name))
        assert (document["curve"][0]["reward"], document["counts"]["left_out"]["other_reward_model"]) == (9.0, 1)
        assert document["reward_models"] == ["another@77"]


def test_a_request_in_two_logs_counts_once_by_its_earliest_answer(tmp_path: Path) -> None:
    first = record("same", [1.0])
    again = replace(record("same", [5.0]), created_at=first.created_at.replace(hour=13))
    logs = [written(tmp_path, [again, record("x", [3.0])], "a"), written(tmp_path, [first], "b")]
    copy = written(tmp_path, [first], "c")
    document = curve(options(*logs, copy))
    assert (document["prompts"], document["counts"]["left_out"]["repeated_request"]) == (2, 2)
    assert document["curve"][0]["reward"] == 2.0


def test_sealed_or_not_is_all_the_same(tmp_path: Path) -> None:
    records = [record(f"r{i}", [float(i % 3), 1.0, i / 7]) for i in range(30)]
    documents = [curve(options(written(tmp_path, records, str(sealed), sealed))) for sealed in (True, False)]
    assert documents[0] == documents[1]


def test_many_prompts_are_grouped_without_changing_a_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = imported(tmp_path, made_lines(300))
    exact = curve(options(log, value="gold"))
    monkeypatch.setattr(clusters, "EXACT_CLUSTERS", 100)
    monkeypatch.setattr(clusters, "GROUPS", 128)
    grouped = curve(options(log, value="gold"))
    assert "groups of prompts" in grouped["intervals"]
    for one, other in zip(exact["curve"], grouped["curve"], strict=True):
        assert [one["reward"], one["value"], one["prompts"]] == pytest.approx(
            [other["reward"], other["value"], other["prompts"]], abs=1e-12
        )
        width = one["value_ci"][1] - one["value_ci"][0]
        assert other["value_ci"][1] - other["value_ci"][0] == pytest.approx(width, rel=0.5)


def test_groups_of_prompts_are_not_resampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = [imported(tmp_path, made_lines(300), name) for name in "ab"]
    monkeypatch.setattr(clusters, "EXACT_CLUSTERS", 100)
    monkeypatch.setattr(clusters, "GROUPS", 128)
    monkeypatch.delattr(clusters, "bootstrap_totals")
    rows = curve(options(logs[0], extrapolate=8))["curve"] + compare(options(), *logs)["curve"]
    intervals = [row[name] for row in rows for name in ("reward_ci", "difference_ci") if name in row]
    assert len(intervals) == 7 + 6 and None not in intervals


def test_what_is_all_equal_has_no_kl_and_no_fit(tmp_path: Path) -> None:
    """Not even the rounding of sums, above 0 or below: the fit takes roots."""
    lines = [line(f"p{i % 5}", [1.0] * 8, scores={"gold": [0, 1, 0, 1, 1, 0, 0, i % 2]}) for i in range(101)]
    document = curve(options(imported(tmp_path, lines), value="gold"))
    assert [(row["kl_nats"], row["kl_ci"]) for row in document["curve"]] == [(0.0, [0.0, 0.0])] * 8
    assert document["fit"] is None


def test_what_waits_is_added_up_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = [imported(tmp_path, made_lines(20, seed=seed), str(seed)) for seed in range(2)]
    rewards = [row["reward"] for row in curve(options(*logs))["curve"]]
    added, right = [], curve_sums._add_ranks

    def counted(sample: Sample, ranked: Ranked, of: CurveOptions) -> None:
        added.append(len(ranked.prompt))
        right(sample, ranked, of)

    monkeypatch.setattr(curve_sums, "MOST_WAITING", 1)
    monkeypatch.setattr(curve_sums, "_add_ranks", counted)
    assert [row["reward"] for row in curve(options(*logs))["curve"]] == pytest.approx(rewards)
    assert added == [20, 20]


def test_points_alone_are_the_same_points(tmp_path: Path) -> None:
    log = imported(tmp_path, [*ODD_LINES, *made_lines(20)])
    whole, points = curve(options(log, value="gold")), curve(options(log, value="gold", intervals=False))
    assert points["intervals"] == "none" and points["counts"] == whole["counts"]
    for one, other in zip(whole["curve"], points["curve"], strict=True):
        assert all(other[name] is None for name in other if name.endswith("_ci"))
        figures = [name for name in one if not name.endswith("_ci") and name != "kl_method"]
        assert [other[name] for name in figures] == pytest.approx([one[name] for name in figures], abs=1e-12)


def test_extrapolation_is_labelled(tmp_path: Path) -> None:
    rows = curve(options(imported(tmp_path, made_lines(5)), extrapolate=20))["curve"]
    assert [row["k"] for row in rows if row.get("extrapolated")] == [8, 16, 20]
    assert not any(row.get("extrapolated") for row in rows[:6])
    assert rows[-1]["reward"] > rows[5]["reward"] * 0.9 and rows[-1]["kl_method"] is None


@pytest.mark.parametrize(
    ("change", "error", "complaint"),
    [
        ({"value": "golden"}, LogError, "golden: no candidate has a part .*; there are: gold"),
        ({"rank_by": "tokens"}, LogError, "tokens: no candidate has it; 5 requests read"),
        ({"extrapolate": 0}, ConfigError, "extrapolate: 0"),
        ({"reward_model": "x"}, LogError, "5 other_reward_model left out"),
    ],
)
def test_refusals(tmp_path: Path, change: dict[str, Any], error: type[Exception], complaint: str) -> None:
    log = imported(tmp_path, made_lines(5))
    with pytest.raises(error, match=complaint):
        curve(options(log, **change))


@pytest.mark.parametrize("logs", [lambda log: (), lambda log: (log, log)])
def test_logs_are_named_once(tmp_path: Path, logs: Callable[[Path], tuple[Path, ...]]) -> None:
    with pytest.raises(ConfigError, match="log: "):
        curve(options(*logs(imported(tmp_path, made_lines(1)))))


def test_kl_is_finite_for_many_samples(tmp_path: Path) -> None:
    rows = curve(options(imported(tmp_path, [line("many", [float(i % 50) for i in range(400)])])))["curve"]
    assert len(rows) == 400 and all(math.isfinite(row["kl_nats"]) for row in rows)

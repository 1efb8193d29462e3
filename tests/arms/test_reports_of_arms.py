"""What the documents, tables and the figure say of answers whose figures are known."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import kl_reward_report, round_trip_report
from benchmarks.arms.setting import STRONG, WEAK
from benchmarks.kl_reward_arms import Arm, best_of_n
from benchmarks.kl_reward_plot import plot
from benchmarks.round_trip_report import BASE, CONTROL, TUNED
from tests.arms.made_answers import made_answers

SURROUNDINGS = {
    "split": "development",
    "size": "quick",
    "machine": {"cpu": "some", "cores": 2},
    "seconds": {"all": 60.0},
}


def _arms() -> list[Arm]:
    base = made_answers(0)
    arms: list[Arm] = []
    for proxy in (STRONG, WEAK):
        arms += best_of_n(base, proxy)
        for steps in (1, 2, 3):
            gold = [np.clip(base.gold + 0.1 * steps, 0, 1)]
            kl = [np.full(40, 0.5 * steps)]
            arms.append(
                Arm(f"GRPO, {steps} steps", "rl", proxy, [base.rewards[proxy]], gold, kl, "full", 9.0, 50.0 * steps)
            )
        if proxy == STRONG:
            for name, kind, control, shift in (
                ("best per prompt", "sft", "random per prompt", 1.0),
                ("random per prompt", "control", None, 0.0),
            ):
                answers = [made_answers(seed, shift=shift) for seed in (1, 2)]
                arms.append(
                    Arm(
                        name,
                        kind,
                        proxy,
                        [one.rewards[proxy] for one in answers],
                        [one.gold for one in answers],
                        [np.full(40, 1.0)] * 2,
                        "full",
                        20.0,
                        1000.0,
                        control,
                    )
                )
    return arms


def test_best_of_n_is_the_mean_over_all_subsets() -> None:
    answers = made_answers(3, questions=5, samples=6)
    arms = {arm.name: arm for arm in best_of_n(answers, STRONG)}
    assert list(arms) == ["base", *(f"best-of-{n}" for n in range(2, 7))]
    ranks, right = answers.rewards[STRONG], answers.gold
    for question in range(5):
        proxies, golds = [], []
        for some in map(list, itertools.combinations(range(6), 3)):
            best = ranks[question, some].max()
            proxies.append(best)
            golds.append(right[question, some][ranks[question, some] == best].mean())
        assert arms["best-of-3"].proxy[0][question] == pytest.approx(np.mean(proxies))
        assert arms["best-of-3"].gold[0][question] == pytest.approx(np.mean(golds))
    assert arms["best-of-3"].answer_tokens == 60
    assert (arms["base"].kl_method, arms["best-of-3"].kl_method) == (None, "exact-plugin")


def test_the_document_of_the_arms() -> None:
    document = json.loads(json.dumps(kl_reward_report.report(_arms())))
    keys = {"name", "kl_nats", "kl_method", "proxy", "proxy_ci", "gold", "gold_ci", "train_tokens", "seeds"}
    assert all(keys <= set(arm) for arm in document["arms"])
    by_name = {(arm["proxy_model"], arm["name"]): arm for arm in document["arms"]}
    base = by_name[STRONG, "base"]
    assert base["kl_nats"] == 0
    assert base["gold_gain"] == 0
    tuned, control = by_name[STRONG, "best per prompt"], by_name[STRONG, "random per prompt"]
    assert tuned["gold_gain"] == pytest.approx(tuned["gold"] - base["gold"], abs=2e-4)
    assert tuned["gold_minus_control"] == pytest.approx(tuned["gold"] - control["gold"], abs=2e-4)
    assert tuned["gold_minus_control_ci"][0] > 0
    assert "gold_minus_control" not in control
    assert tuned["seeds"] == 2
    assert tuned["gold"] == pytest.approx(np.mean([seed["gold"] for seed in tuned["by_seed"]]), abs=2e-4)
    best = by_name[STRONG, "best-of-8"]
    assert best["kl_nats"] < best["kl_bound_nats"]
    assert set(document["fits"]) == {STRONG, WEAK}
    low, high = document["fits"][STRONG]["alpha_ci"]
    assert 0 < low < document["fits"][STRONG]["alpha"] < high


def test_an_interval_of_the_arms_is_paired() -> None:
    """The same answers shifted by a constant differ by exactly that constant."""
    arms = [arm for arm in _arms() if arm.name == "base" and arm.proxy_model == STRONG]
    shifted = replace(arms[0], name="shifted", kind="rl", gold=[arms[0].gold[0] + 0.5])
    document = kl_reward_report.report([*arms, shifted])
    assert document["arms"][1]["gold_gain_ci"] == [0.5, 0.5]


def test_table_and_figure_show_every_arm(tmp_path: Path) -> None:
    document: dict[str, Any] = kl_reward_report.report(_arms()) | SURROUNDINGS
    table = kl_reward_report.table(document)
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")]
    of_strong = ["base", "best-of-2", "best-of-4", "best-of-8", "GRPO, 1 steps", "GRPO, 2 steps", "GRPO, 3 steps"]
    assert [row for row in rows if row[0] != "|"] == [
        *of_strong, "best per prompt", "random per prompt", *of_strong
    ]  # fmt: skip
    plot(document, tmp_path / "arms.svg")
    drawn = (tmp_path / "arms.svg").read_text()
    assert drawn.lstrip().startswith("<?xml")
    assert drawn.count('<g id="axes_') == 6


def test_the_round_trip_is_compared_with_base_and_control() -> None:
    base, better = made_answers(0, questions=200), made_answers(0, questions=200, shift=1.0)
    same = replace(base, gold=base.gold.copy())
    kl = {TUNED: [np.full(200, 1.0), np.full(200, 3.0)], CONTROL: [np.full(200, 1.0)] * 2}
    mode = {BASE: [base], TUNED: [better, better], CONTROL: [same, same]}
    document = json.loads(json.dumps(round_trip_report.report({"sampled": mode, "greedy": mode}, kl)))
    found = document["sampled"]["reward"]
    assert found["tuned_minus_base"] == found["tuned_minus_control"] == {"value": 1.0, "ci95": [1.0, 1.0]}
    assert found["control_minus_base"]["ci95"] == [0.0, 0.0]
    assert document["kl_nats"]["tuned"] == {"value": 2.0, "ci95": [2.0, 2.0]}
    assert document["seeds"] == len(found["by_seed"]) == 2
    assert found["by_seed"][1]["tuned_minus_base"]["value"] == 1.0
    gold = document["sampled"]["gold"]
    assert gold["tuned"]["value"] == pytest.approx(better.gold.mean(), abs=1e-4)
    assert gold["tuned_minus_base"]["ci95"][0] > 0
    table = round_trip_report.table(document | SURROUNDINGS)
    assert "| tuned − control | " in table
    assert "1.000 [1.000, 1.000]" in table

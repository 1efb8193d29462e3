"""Curves by added scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bon_server.core.errors import LogError
from bon_server.core.types import ModelRef
from bon_server.estimators import reward_at_k
from bon_server.evaluate.curve import curve
from bon_server.evaluate.curve_sums import CurveOptions
from bon_server.evaluate.reading import LogSource
from bon_server.log.scores.files import score_files
from bon_server.offline.rescore import rescore
from tests.offline.rescore.rescoring import commit, rescored, sampled, synthetic_reward


def test_rank_and_value_by_an_added_score(tmp_path: Path) -> None:
    some = [one for one in sampled(60) if one.candidates]
    log = commit(tmp_path / "log", some)
    rescored(log, name="gold")
    ranked = curve(CurveOptions(LogSource((log,)), rank_by="gold", value="length"))
    valued = curve(CurveOptions(LogSource((log,)), value="gold"))
    assert ranked["scores"].keys() == {"gold"} and ranked["reward_models"] == [ranked["scores"]["gold"]]
    assert valued["reward_models"] == ["a-reward-model@1f2e"] and valued["scores"].keys() == {"gold"}
    for k in range(1, 6):
        enough = [one.candidates for one in some if len(one.candidates) >= k]
        gold = [np.array([[synthetic_reward(one.text) for one in candidates]]) for candidates in enough]
        own = [np.array([[one.reward for one in candidates]], dtype=float) for candidates in enough]
        assert ranked["curve"][k - 1]["reward"] == pytest.approx(np.mean([reward_at_k(g, g)[0, k - 1] for g in gold]))
        by_reward = np.mean([reward_at_k(r, g)[0, k - 1] for r, g in zip(own, gold, strict=True)])
        assert valued["curve"][k - 1]["value"] == pytest.approx(by_reward)


def test_logs_of_several_reward_models_are_one_once_rescored(tmp_path: Path) -> None:
    logs = []
    for number in (1, 2):
        models = (ModelRef("r", "rm", str(number)),)
        some = [replace(one, reward_models=models) for one in sampled(10, first=10 * number)]
        logs.append(commit(tmp_path / str(number), some))
    with pytest.raises(LogError, match="different reward models"):
        curve(CurveOptions(LogSource(tuple(logs))))
    rescored(logs[0])
    with pytest.raises(LogError, match=r"not rescored in .*2"):
        curve(CurveOptions(LogSource(tuple(logs)), rank_by="new"))
    rescored(logs[1])
    assert curve(CurveOptions(LogSource(tuple(logs)), rank_by="new"))["counts"]["requests"] == 20
    assert curve(CurveOptions(LogSource(tuple(logs), merge=True), rank_by="new"))["prompts"] <= 20
    with pytest.raises(LogError, match="different reward models"):
        curve(CurveOptions(LogSource(tuple(logs)), value="new"))


def test_a_name_that_nobody_has(tmp_path: Path) -> None:
    log = commit(tmp_path / "log", sampled(10))
    rescored(log, name="gold")
    with pytest.raises(LogError, match=r"silver: no candidate .* there are: gold"):
        curve(CurveOptions(LogSource((log,)), rank_by="reward", value="silver"))


def test_damaged_scores_stop_it_unless_it_is_told_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescore, "CHUNK_REQUESTS", 16)
    log = commit(tmp_path / "log", sampled(40))
    rescored(log, name="gold")
    _, file, _ = score_files(log, "gold")
    file.path.write_bytes(file.path.read_bytes()[:-1])
    with pytest.raises(LogError, match=r"scores/gold/.*damaged"):
        curve(CurveOptions(LogSource((log,)), rank_by="gold"))
    damage: list[LogError] = []
    left = curve(CurveOptions(LogSource((log,), on_damage=damage.append), rank_by="gold"))
    some = [one for one in (*sampled(16), *sampled(8, first=32)) if one.candidates]
    assert len(damage) == 1 and left["prompts"] == len(some)

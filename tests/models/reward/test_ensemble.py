"""Several reward models as one: arithmetic, what a missing part does, and settings that cannot be."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bon_server.config.settings import RewardConfig
from bon_server.core.errors import ConfigError, RewardFailed
from bon_server.core.types import CandidateStatus, ModelRef, Prompt, Score
from bon_server.models.reward.ensemble import EnsembleReward, check_ensemble
from tests.fakes import ScriptedReward, scored
from tests.waiting import forever, until

finite = st.floats(-1e6, 1e6)
ASKED: tuple[Prompt, str, Mapping[str, str]] = (Prompt(text="q"), "a", {})


def part(name: str, score: Score) -> ScriptedReward:
    async def script(text: str) -> Score:
        return score

    return ScriptedReward(script, refs=(ModelRef(name, "scripted", "1"),))


def ensemble(scores: Mapping[str, Score], **config: Any) -> EnsembleReward:
    return EnsembleReward({name: part(name, score) for name, score in scores.items()}, RewardConfig(**config))


def combined(rewards: Mapping[str, float], **config: Any) -> Score:
    return asyncio.run(ensemble({name: scored(reward) for name, reward in rewards.items()}, **config).score(*ASKED))


@given(st.lists(finite, min_size=2, max_size=5), st.data())
def test_combinations_are_what_their_formulas_say(rewards: list[float], data: st.DataObject) -> None:
    named = {f"r{index}": reward for index, reward in enumerate(rewards)}
    weights = {name: data.draw(st.floats(0.1, 10)) for name in named}
    mean = sum(weights[name] * named[name] for name in named) / sum(weights.values())
    variance = sum(weights[name] * (named[name] - mean) ** 2 for name in named) / sum(weights.values())
    assert combined(named, weights=weights).reward == pytest.approx(mean, rel=1e-9, abs=1e-6)
    assert combined(named, combine="min").reward == min(rewards)
    pessimistic = combined(named, weights=weights, combine="mean-minus-k-std", std_factor=0.5)
    assert pessimistic.reward == pytest.approx(mean - 0.5 * math.sqrt(variance), rel=1e-6, abs=1e-3)
    assert pessimistic.rewards == named and pessimistic.tokens == len(rewards)


@pytest.mark.parametrize(
    ("status", "error"),
    [(CandidateStatus.NON_FINITE, None), (CandidateStatus.TOO_LONG, None), (CandidateStatus.FAILED, "ValueError")],
)
def test_a_completion_that_one_cannot_score_has_no_reward(status: CandidateStatus, error: str | None) -> None:
    models = ensemble({"a": scored(1.0), "b": Score(status, error=error), "c": scored(3.0)})
    score = asyncio.run(models.score(*ASKED))
    assert (score.status, score.reward, score.rewards) == (status, None, {"a": 1.0, "c": 3.0})
    assert score.error == (None if error is None else "b: ValueError")


def test_rewards_too_large_to_be_combined_are_not_finite() -> None:
    assert combined({"a": 1e308, "b": -1e308}, combine="mean-minus-k-std").status is CandidateStatus.NON_FINITE


def test_a_model_that_fails_fails_all_and_the_others_are_withdrawn() -> None:
    async def fails(text: str) -> Score:
        raise RewardFailed("broken")

    slow = ScriptedReward(lambda text: forever())

    async def run() -> None:
        with pytest.raises(RewardFailed):
            await EnsembleReward({"a": slow, "b": ScriptedReward(fails)}, RewardConfig()).score(*ASKED)
        await until(lambda: slow.running == 0)

    asyncio.run(run())


def test_another_combination_is_another_model() -> None:
    """Rewards that were combined in another way must not be compared."""
    scores = {"a": scored(1.0), "b": scored(2.0)}
    settings: list[dict[str, Any]] = [{}, {"combine": "min"}, {"weights": {"a": 2.0}}]
    settings += [{"combine": "mean-minus-k-std", "std_factor": k} for k in (0.5, 1.0)]
    revisions = {ensemble(scores, **each).refs[-1] for each in settings}
    assert len(revisions) == len(settings)
    assert ensemble(scores, weights={"a": 3.0, "b": 3.0}).refs == ensemble(scores).refs
    assert [ref.name for ref in ensemble(scores).refs] == ["a", "b", "ensemble"]


@pytest.mark.parametrize(
    ("names", "config", "said"),
    [
        (["default", "default"], {}, "'default'; give each a name"),
        (["a", "ensemble"], {}, "'ensemble' is taken"),
        (["a", "b"], {"combine": "max"}, "'max': allowed are mean, min, mean-minus-k-std"),
        (["a", "b"], {"combine": "min", "weights": {"a": 1.0}}, "'min', which takes none"),
        (["a", "b"], {"weights": {"c": 1.0}}, "'c': there is no such reward model; there are a, b"),
        (["a", "b"], {"weights": {"a": 0.0}}, "0.0 is not finite and above 0"),
        (["a", "b"], {"weights": {"a": math.nan}}, "nan is not finite and above 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(names: list[str], config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match="reward") as refused:
        check_ensemble(names, RewardConfig(**config))
    assert said in str(refused.value)

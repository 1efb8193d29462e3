"""Figures of held-out samples: alone, and paired with those of another policy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bon_server.core.types import Candidate, CandidateStatus, FinishReason, LogprobKind
from bon_server.loop.rounds.evaluation import FIGURES, GREEDY, SAMPLED, HeldOut, _sums, alone, kl_figure, paired


def _candidate(reward: float | None, tokens: tuple[int, ...] = (1, 2, 3), **more: object) -> Candidate:
    fields: dict[str, object] = {
        "index": 0,
        "status": CandidateStatus.UNSCORED if reward is None else CandidateStatus.SCORED,
        "reward": reward,
        "token_ids": tokens,
        "completion_tokens": len(tokens),
        "finish_reason": FinishReason.STOP,
    }
    return Candidate(**fields | more)  # type: ignore[arg-type]


def _held_out(prompts: dict[str, list[Candidate]], gold: float = math.nan) -> HeldOut:
    sums = {prompt: _sums(candidates, [gold] * len(candidates)) for prompt, candidates in prompts.items()}
    return HeldOut(sums={GREEDY: sums, SAMPLED: sums})


def test_figures_by_hand() -> None:
    one = [_candidate(1.0), _candidate(3.0, (1, 2, 4, 4), finish_reason=FinishReason.LENGTH)]
    two = [_candidate(8.0, (5,), logprob=-2.0, logprob_kind=LogprobKind.SAMPLED), _candidate(None, (5,))]
    told = alone(_held_out({"a": one, "b": two}, gold=1.0), seed=0)[SAMPLED]
    assert told["prompts"] == 2
    assert {name: told[name]["mean"] for name in FIGURES} == {
        "reward": 4.0,  # of the three that have one
        "gold": 1.0,
        "tokens": 9 / 4,
        "truncated": 1 / 4,
        "entropy_nats": 2.0,
        "distinct_1": pytest.approx((4 / 7 + 1 / 2) / 2),
        "distinct_2": 4 / 5,  # 12 23 12 24 44; the second prompt has no pair of tokens
        "distinct_3": 1.0,
    }


def test_what_is_not_known_is_none() -> None:
    told = alone(_held_out({"a": [_candidate(1.0)]}), seed=0)
    assert told[SAMPLED]["gold"] is None
    assert told[SAMPLED]["entropy_nats"] is None
    assert told[SAMPLED]["reward"] == {"mean": 1.0, "ci": None}
    assert "distinct_1" not in told[GREEDY]
    assert alone(HeldOut(), seed=0)[SAMPLED]["reward"] is None


def test_a_log_probability_at_temperature_1_is_no_entropy() -> None:
    greedy = _candidate(1.0, logprob=-9.0, logprob_kind=LogprobKind.TEMPERATURE_1)
    assert alone(_held_out({"a": [greedy]}), seed=0)[SAMPLED]["entropy_nats"] is None


def test_pairing_takes_away_what_prompts_have_in_common() -> None:
    """Prompts differ by much more than the policies do: only the paired interval sees that one is better."""
    dice = np.random.default_rng(5)
    levels = {str(number): float(dice.normal(0, 10)) for number in range(60)}
    before = _held_out({name: [_candidate(level)] for name, level in levels.items()})
    there = _held_out({name: [_candidate(level + dice.normal(0.5, 0.5))] for name, level in levels.items()})
    figure = paired(there, before, seed=0)[SAMPLED]["reward"]
    low, high = figure["ci"]
    assert 0.2 < low < figure["difference"] < high < 0.8
    wide = alone(there, seed=0)[SAMPLED]["reward"]["ci"]
    assert wide[1] - wide[0] > 3.0


def test_only_shared_prompts_are_paired() -> None:
    before = _held_out({"a": [_candidate(1.0)], "b": [_candidate(1.0)], "c": [_candidate(None)]})
    there = _held_out({"b": [_candidate(3.0)], "c": [_candidate(9.0)], "d": [_candidate(9.0)]})
    told = paired(there, before, seed=0)[SAMPLED]
    assert told["prompts"] == 2
    assert told["reward"] == {"difference": 2.0, "ci": None}


def test_kl_of_no_text_one_text_and_infinity() -> None:
    assert kl_figure([], seed=0) is None
    assert kl_figure([0.5, 0.5, 0.5], seed=0) == {"mean": 0.5, "ci": [0.5, 0.5], "texts": 3, "infinite": 0}
    assert kl_figure([0.5, math.inf], seed=0) == {"mean": None, "ci": None, "texts": 2, "infinite": 1}

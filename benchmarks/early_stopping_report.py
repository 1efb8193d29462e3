"""From rewards and tokens of each arm to what was saved, with intervals over questions.

The document: `tokens_saved_at_equal_reward` is the share of generated tokens that the chosen arm saves against the
fixed number, and null unless the mean reward is as good: the 95 % interval of the paired difference has to include 0 or
lie above. `arms` has every arm's figures, `fixed_curve` what fewer candidates would have given: the expected reward of
the best of k of the fixed number's candidates (unbiased, `estimators`), at k times their mean tokens.
`saved_at_the_curve` is a stricter figure: an arm's tokens against those at which the curve reaches the same reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.early_stopping_arms import CHOSEN, FIXED, Arm
from bon_server.estimators.order_statistics import reward_at_k

Floats = NDArray[np.float64]
RESAMPLES = 10_000


@dataclass(frozen=True)
class Measured:
    """One arm, question by question."""

    best: Floats
    """(questions,) reward of the answer."""
    right: Floats
    """(questions,) whether the answer is right."""
    tokens: Floats
    """(questions,) generated, those of stopped and pruned candidates included."""
    reward_tokens: Floats
    """(questions,) read by the reward model."""
    started: Floats
    """(questions,) candidates that generated anything."""
    rewards: Floats
    """(questions, n) all rewards, of the fixed arm; NaN for the others."""

    @classmethod
    def empty(cls, questions: int, n: int) -> Self:
        """To be filled in."""
        best, right, tokens, reward_tokens, started = np.full((5, questions), np.nan)
        return cls(best, right, tokens, reward_tokens, started, np.full((questions, n), np.nan))


def report(arms: Sequence[Arm], measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Everything that was measured. `FIXED` is among the arms."""
    fixed = measured[FIXED]
    resamples = np.random.default_rng(0).integers(len(fixed.best), size=(RESAMPLES, len(fixed.best)))
    curve = _curve(fixed)
    figures = {arm.name: _figures(arm, measured[arm.name], fixed, curve, resamples) for arm in arms}
    chosen = figures.get(CHOSEN)
    equal = chosen is not None and chosen["reward_difference"]["ci95"][1] >= 0
    return {
        "tokens_saved_at_equal_reward": chosen["tokens_saved"]["value"] if chosen is not None and equal else None,
        "chosen": CHOSEN,
        "reward_is_equal": equal,
        "arms": figures,
        "fixed_curve": [{"k": k + 1, "reward": round(r, 4), "tokens": round(t, 1)} for k, (r, t) in enumerate(curve)],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _curve(fixed: Measured) -> list[tuple[float, float]]:
    """(expected reward, expected tokens) of the best of k of the fixed arm's candidates, for each k."""
    n = fixed.rewards.shape[1]
    rewards = reward_at_k(fixed.rewards).mean(axis=0)
    return [(float(rewards[k]), float(fixed.tokens.mean()) * (k + 1) / n) for k in range(n)]


def _figures(
    arm: Arm, one: Measured, fixed: Measured, curve: Sequence[tuple[float, float]], resamples: NDArray[np.int64]
) -> dict[str, Any]:
    at_curve = float(np.interp(one.best.mean(), [r for r, _ in curve], [t for _, t in curve]))
    saved = 1 - one.tokens[resamples].sum(axis=1) / fixed.tokens[resamples].sum(axis=1)
    return {
        "kind": arm.kind,
        "options": arm.options,
        "reward": _with_interval(one.best.mean(), one.best[resamples].mean(axis=1)),
        "reward_difference": _with_interval(
            (one.best - fixed.best).mean(), (one.best - fixed.best)[resamples].mean(axis=1)
        ),
        "tokens": round(float(one.tokens.mean()), 1),
        "tokens_saved": _with_interval(1 - one.tokens.sum() / fixed.tokens.sum(), saved),
        "saved_at_the_curve": round(1 - float(one.tokens.mean()) / at_curve, 4),
        "candidates_started": round(float(one.started.mean()), 2),
        "reward_model_tokens": round(float(one.reward_tokens.mean()), 1),
        "accuracy": _with_interval(one.right.mean(), one.right[resamples].mean(axis=1)),
    }


def _with_interval(value: float, resampled: Floats) -> dict[str, Any]:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"value": round(float(value), 4), "ci95": [round(float(low), 4), round(float(high), 4)]}

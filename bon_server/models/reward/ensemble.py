"""Several reward models as one: the reward is made of theirs, and theirs are logged beside it.

With rewards r_i and weights w_i that sum to 1: `mean` is sum w_i r_i; `min` is the lowest r_i; `mean-minus-k-std` is
the mean less k times sqrt(sum w_i (r_i - mean)^2). The last two are the uncertainty-weighted and worst-case rewards of
Coste et al. 2024, "Reward Model Ensembles Help Mitigate Overoptimization". The models must be on one scale for any of
these to mean something; weights can bring them there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol

from bon_server.config.settings import RewardConfig
from bon_server.core.errors import ConfigError
from bon_server.core.types import CandidateStatus, ModelRef, Prompt, Score
from bon_server.system.telemetry import Telemetry

NAME = "ensemble"
COMBINATIONS = ("mean", "min", "mean-minus-k-std")
WORST_FIRST = (CandidateStatus.FAILED, CandidateStatus.TOO_LONG, CandidateStatus.NON_FINITE)


class MemberModel(Protocol):
    """One of the models."""

    @property
    def refs(self) -> tuple[ModelRef, ...]:
        """Which models score."""

    @property
    def facts(self) -> Mapping[str, str | int]:
        """For the start-up banner."""

    @property
    def engines(self) -> tuple[Telemetry, ...]:
        """For the metrics."""

    @property
    def healthy(self) -> bool:
        """False once it can score no more."""

    def score(self, prompt: Prompt, completion: str, context: Mapping[str, str]) -> Awaitable[Score]:
        """The reward of one completion."""

    async def close(self) -> None:
        """Releases everything."""


def check_ensemble(names: Sequence[str], config: RewardConfig) -> None:
    """Raises `ConfigError` for names, weights or a combination that cannot be."""
    double = sorted({name for name in names if list(names).count(name) > 1})
    if double or NAME in names:
        problem = f"two reward models are called {double[0]!r}" if double else f"{NAME!r} is taken"
        raise ConfigError(f"reward.models: {problem}; give each a name of its own, as in --reward helpful=MODEL")
    if config.combine not in COMBINATIONS:
        raise ConfigError(f"reward.combine {config.combine!r}: allowed are {', '.join(COMBINATIONS)}")
    if config.combine == "min" and config.weights:
        raise ConfigError("reward.weights: given, but reward.combine is 'min', which takes none")
    for name, weight in config.weights.items():
        if name not in names:
            raise ConfigError(f"reward.weights {name!r}: there is no such reward model; there are {', '.join(names)}")
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"reward.weights {name!r}: {weight} is not finite and above 0")


class EnsembleReward:
    """A `RewardModel` made of several. A completion that one of them cannot score has no reward at all."""

    def __init__(self, parts: Mapping[str, MemberModel], config: RewardConfig) -> None:
        self._parts = dict(parts)
        self._combine = config.combine
        self._std_factor = config.std_factor
        given = [config.weights.get(name, 1.0) for name in parts]
        self._weights = [weight / math.fsum(given) for weight in given]
        how: dict[str, Any] = {"combine": config.combine, "weights": dict(zip(parts, self._weights, strict=True))}
        if config.combine == "mean-minus-k-std":
            how["std_factor"] = config.std_factor
        digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()
        self.refs = (*(ref for part in parts.values() for ref in part.refs), ModelRef(NAME, config.combine, digest))
        self.facts: Mapping[str, str | int] = {name: _listed(part.facts) for name, part in parts.items()}
        self.engines = tuple(engine for part in parts.values() for engine in part.engines)

    @property
    def healthy(self) -> bool:
        """Whether all of them can score."""
        return all(part.healthy for part in self._parts.values())

    async def score(self, prompt: Prompt, completion: str, context: Mapping[str, str]) -> Score:
        """See `RewardModel.score`: `rewards` has the finite parts by name."""
        pending = [asyncio.ensure_future(part.score(prompt, completion, context)) for part in self._parts.values()]
        try:
            scores = await asyncio.gather(*pending)
        finally:
            for one in pending:
                one.cancel()
        return self._together(dict(zip(self._parts, scores, strict=True)))

    async def close(self) -> None:
        """Closes all of them."""
        await asyncio.gather(*(part.close() for part in self._parts.values()))

    def _together(self, scores: Mapping[str, Score]) -> Score:
        parts = {name: score.reward for name, score in scores.items() if score.reward is not None}
        tokens = sum(score.tokens for score in scores.values())
        for status in WORST_FIRST:
            for name, score in scores.items():
                if score.status is status:
                    error = f"{name}: {score.error}" if score.error else None
                    return Score(status, rewards=parts, error=error, tokens=tokens)
        reward = self._combined(list(parts.values()))
        if not math.isfinite(reward):
            return Score(CandidateStatus.NON_FINITE, rewards=parts, tokens=tokens)
        return Score(CandidateStatus.SCORED, reward, parts, tokens=tokens)

    def _combined(self, rewards: Sequence[float]) -> float:
        if self._combine == "min":
            return min(rewards)
        mean = _weighted(self._weights, rewards)
        if self._combine == "mean":
            return mean
        squares = [(reward - mean) * (reward - mean) for reward in rewards]
        return mean - self._std_factor * math.sqrt(_weighted(self._weights, squares))


def _weighted(weights: Sequence[float], values: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def _listed(facts: Mapping[str, str | int]) -> str:
    return " ".join(f"{name}={value}" for name, value in facts.items())

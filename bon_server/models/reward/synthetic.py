"""A reward without a model: a fixed pseudo-random number of the text, for load tests and unit tests."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from bon_server.config.specs import parse_options
from bon_server.core.types import CandidateStatus, ModelRef, Prompt, Score
from bon_server.system.telemetry import Telemetry

Share = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True)
class SyntheticRewardOptions:
    """Options of `--reward synthetic:...`."""

    seconds: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    """Time a score takes."""
    nan_rate: Share = 0.0
    """Share of completions whose reward is NaN."""
    fail_rate: Share = 0.0
    """Share of completions whose scoring fails."""


class SyntheticReward:
    """Rewards in [-1, 1), uniform over texts. The same text always gets the same reward, NaN or failure."""

    def __init__(self, options: SyntheticRewardOptions, name: str = "default") -> None:
        self._options = options
        self.refs = (ModelRef(name, "synthetic", f"{zlib.crc32(repr(options).encode()):08x}"),)
        self.facts: dict[str, str | int] = {"model": "none"}
        self.engines: tuple[Telemetry, ...] = ()
        self.healthy = True

    @classmethod
    def from_spec(cls, spec: str, name: str = "default") -> SyntheticReward:
        """From `synthetic[:key=value,...]`; raises `ConfigError`."""
        return cls(parse_options(spec, SyntheticRewardOptions), name)

    def score(self, prompt: Prompt, completion: str, context: Mapping[str, str]) -> Awaitable[Score]:
        """See `RewardModel.score`. Without a delay the score is there at once, and no task is made for it."""
        if self._options.seconds:
            return self._score_later(completion)
        score: asyncio.Future[Score] = asyncio.get_running_loop().create_future()
        score.set_result(self._score(completion))
        return score

    async def _score_later(self, completion: str) -> Score:
        await asyncio.sleep(self._options.seconds)
        return self._score(completion)

    def _score(self, completion: str) -> Score:
        text = completion.encode()
        fate = _uniform(text, salt=1)
        if fate < self._options.fail_rate:
            return Score(CandidateStatus.FAILED, error="synthetic failure")
        if fate < self._options.fail_rate + self._options.nan_rate:
            return Score(CandidateStatus.NON_FINITE)
        reward = 2.0 * _uniform(text, salt=0) - 1.0
        return Score(CandidateStatus.SCORED, reward, tokens=len(text))

    async def close(self) -> None:
        """Nothing to release."""


def _uniform(text: bytes, salt: int) -> float:
    return zlib.crc32(text, salt) / 2**32

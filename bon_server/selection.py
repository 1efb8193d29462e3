"""Selection rules: pure functions of rewards, rule and seed.

Ties go to the lowest index and a reward that is missing or not finite is never chosen, whatever the order of arrival,
of files, shards or threads. (`argmax` of torch, DuckDB and Polars all choose NaN.)

Online, `argmax` chooses among the candidates of one request. Offline, rules choose from a `Pool`, the columns of many
candidates at once. Every offline rule keeps a subset of its pool and `rule(rule(a) + b) == rule(a + b)`, so a log of
any size can be fed in batches, carrying only what was kept so far.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.intp]


def argmax(rewards: Sequence[float | None]) -> int | None:
    """Index of the highest finite reward, the lowest such index on ties; None when no reward is finite.

    rewards: (n,), None or NaN or infinite where there is no reward.
    """
    best: int | None = None
    highest = -math.inf
    for index, reward in enumerate(rewards):
        if reward is not None and math.isfinite(reward) and (best is None or reward > highest):
            best, highest = index, reward
    return best


def soft(rewards: Sequence[float | None], temperature: float, seed: int) -> int | None:
    """Index drawn with probability proportional to exp(reward / temperature), from `seed`; None: no finite reward.

    rewards: (n,), None or not finite where there is no reward, and never drawn. temperature: above 0, in units of
    reward. The draw is one uniform number against the cumulative weights in index order, so that it depends on nothing
    but rewards, temperature and seed.
    """
    best = argmax(rewards)
    if best is None:
        return None
    highest = rewards[best]
    assert highest is not None
    weights = [
        math.exp((reward - highest) / temperature) if reward is not None and math.isfinite(reward) else 0.0
        for reward in rewards
    ]
    left = random.Random(seed).random() * math.fsum(weights)
    for index, weight in enumerate(weights):
        left -= weight
        if weight > 0 and left < 0:
            return index
    return best  # rounding left a rest


def lowest(rewards: Sequence[float | None], fraction: float) -> list[int]:
    """Indices of the `fraction` with the lowest finite rewards, rounded down; on ties the highest indices go first.

    rewards: (n,). At least one of those with a finite reward is left out of the result.
    """
    finite = [(reward, -index) for index, reward in enumerate(rewards) if reward is not None and math.isfinite(reward)]
    count = min(int(len(finite) * fraction), len(finite) - 1)
    return [-negative for _, negative in sorted(finite)[: max(count, 0)]]


class OfflineRule(StrEnum):
    """How `bon select` chooses, each rule with the random control it is to be compared with."""

    BEST_PER_PROMPT = "best-per-prompt"
    TOP_K_OVERALL = "top-k-overall"
    RANDOM_BEST_PER_PROMPT = "random-best-per-prompt"
    """One candidate of each prompt, drawn uniformly from those the rule could have chosen."""
    RANDOM_TOP_K_OVERALL = "random-top-k-overall"
    """K candidates, drawn uniformly without replacement from those the rule could have chosen."""

    @property
    def needs_k(self) -> bool:
        """Whether the rule chooses a given number of candidates."""
        return self in (OfflineRule.TOP_K_OVERALL, OfflineRule.RANDOM_TOP_K_OVERALL)

    @property
    def is_random(self) -> bool:
        """Whether it is a control, which looks at a seed instead of at rewards."""
        return self in (OfflineRule.RANDOM_BEST_PER_PROMPT, OfflineRule.RANDOM_TOP_K_OVERALL)


@dataclass(frozen=True, slots=True)
class Pool:
    """Candidates to choose from: (m,) columns. (writer, ordinal, index) is the place in the log, no two alike."""

    prompt: NDArray[np.bytes_]
    """`S32`: the 32 bytes of the prompt's identity."""
    priority: NDArray[np.float64]
    """What decides: the reward, or for a control a random number. Not finite: never chosen."""
    writer: NDArray[np.int32]
    ordinal: NDArray[np.int64]
    index: NDArray[np.int32]

    @classmethod
    def of(
        cls,
        prompt: Sequence[bytes] = (),
        priority: Sequence[float] = (),
        writer: Sequence[int] = (),
        ordinal: Sequence[int] = (),
        index: Sequence[int] = (),
    ) -> Self:
        """From Python sequences of equal length m."""
        return cls(
            np.array(prompt, dtype="S32"),
            np.array(priority, dtype=np.float64),
            np.array(writer, dtype=np.int32),
            np.array(ordinal, dtype=np.int64),
            np.array(index, dtype=np.int32),
        )

    def __len__(self) -> int:
        return len(self.priority)

    def take(self, positions: Positions) -> Pool:
        """The candidates at `positions`: (j,) into this pool."""
        return Pool(*(getattr(self, column.name)[positions] for column in fields(self)))

    def join(self, other: Pool) -> Pool:
        """These candidates followed by those of `other`."""
        return Pool(*(np.concatenate([getattr(self, c.name), getattr(other, c.name)]) for c in fields(self)))


def choose(rule: OfflineRule, pool: Pool, k: int | None) -> Positions:
    """Positions of what a rule keeps of a pool. For a control, `pool.priority` is `random_priority`."""
    if rule.needs_k:
        return top_k_overall(pool, 0 if k is None else k)
    return best_per_prompt(pool)


def best_per_prompt(pool: Pool) -> Positions:
    """(p,) positions of the candidate of highest priority of each prompt, in log order; ties to the first in the log.

    A prompt without a finite priority has none.
    """
    usable = np.flatnonzero(np.isfinite(pool.priority))
    usable = usable[np.lexsort((*_log_order(pool, usable), -pool.priority[usable], pool.prompt[usable]))]
    prompt = pool.prompt[usable]
    best = usable[np.append(True, prompt[1:] != prompt[:-1])[: len(usable)]]
    in_log_order: Positions = best[np.lexsort(_log_order(pool, best))]
    return in_log_order


def top_k_overall(pool: Pool, k: int) -> Positions:
    """(min(k, finite),) positions of the candidates of highest priority, best first; ties to the first in the log."""
    usable = np.flatnonzero(np.isfinite(pool.priority))
    if 0 < k < len(usable):
        kth_highest = -np.partition(-pool.priority[usable], k - 1)[k - 1]
        usable = usable[pool.priority[usable] >= kth_highest]
    best_first: Positions = usable[np.lexsort((*_log_order(pool, usable), -pool.priority[usable]))]
    return best_first[:k]


def _log_order(pool: Pool, positions: Positions) -> tuple[NDArray[np.generic], ...]:
    """Keys for `lexsort`, which takes the least significant first."""
    return pool.index[positions], pool.ordinal[positions], pool.writer[positions]


def request_key(seed: int, principal: str, request_id: str, attempt: int) -> int:
    """64 random bits that belong to a seed and a request, wherever in whichever log the request is."""
    identity = json.dumps([seed, principal, request_id, attempt]).encode()
    return int.from_bytes(hashlib.blake2b(identity, digest_size=8).digest(), "little")


def random_priority(request_keys: NDArray[np.uint64], index: NDArray[np.int32]) -> NDArray[np.float64]:
    """(m,) uniform numbers in [0, 1), a function of each candidate's request key and index alone.

    SplitMix64 (Steele, Lea and Flood 2014), with the request key as its state and the index as the step: counter-based,
    so that the draw does not depend on what else is read, or in which order.
    """
    state = request_keys + (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    uniform: NDArray[np.float64] = (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform

"""Selection rules: pure functions of rewards, rule and seed.

Ties go to the lowest index and a reward that is missing or not finite is never chosen, whatever the order of arrival,
of files, shards or threads. (`argmax` of torch, DuckDB and Polars all choose NaN.)

Online, `argmax` and `soft` choose among the candidates of one request. The offline rules, which choose from many
prompts at once, have their names here and are in `offline/select/rules.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
    """How `bon select` chooses, each rule with the random control it is to be compared with.

    A control chooses as many of each prompt as its rule does (of the whole log, for `top-k-overall`), from the same
    candidates, by a random number instead of by reward. What each does exactly is said in `offline/select/rules.py`.
    """

    BEST_PER_PROMPT = "best-per-prompt"
    TOP_K_PER_PROMPT = "top-k-per-prompt"
    TOP_K_OVERALL = "top-k-overall"
    THRESHOLD = "threshold"
    PAIRS = "pairs"
    SOFT = "soft"
    RANDOM_BEST_PER_PROMPT = "random-best-per-prompt"
    RANDOM_TOP_K_PER_PROMPT = "random-top-k-per-prompt"
    RANDOM_TOP_K_OVERALL = "random-top-k-overall"
    RANDOM_THRESHOLD = "random-threshold"
    RANDOM_PAIRS = "random-pairs"
    RANDOM_SOFT = "random-soft"

    @property
    def is_random(self) -> bool:
        """Whether it is a control."""
        return self.value.startswith("random-")

    @property
    def shape(self) -> OfflineRule:
        """The rule that a control is the control of; of the others, themselves."""
        return OfflineRule(self.value.removeprefix("random-"))

    @property
    def needs_k(self) -> bool:
        """Whether it chooses a number of candidates that must be given."""
        return self.shape in (OfflineRule.TOP_K_PER_PROMPT, OfflineRule.TOP_K_OVERALL)


def request_key(seed: int, principal: str, request_id: str, attempt: int) -> int:
    """64 random bits that belong to a seed and a request, wherever in whichever log the request is."""
    identity = json.dumps([seed, principal, request_id, attempt]).encode()
    return int.from_bytes(hashlib.blake2b(identity, digest_size=8).digest(), "little")


def random_priority(request_keys: NDArray[np.uint64], index: NDArray[np.int32]) -> NDArray[np.float64]:
    """(m,) uniform numbers in [0, 1), a function of each candidate's request key and index alone.

    SplitMix64 (Steele, Lea and Flood 2014), with the request key as its state and the index as the step: counter-based,
    so that the draw does not depend on what else is read, or in which order.
    """
    import numpy as np  # here, since the command line reads the names of the rules and starts in a third of the time

    state = request_keys + (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    uniform: NDArray[np.float64] = (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform

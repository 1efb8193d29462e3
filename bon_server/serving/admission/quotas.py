"""What each principal may use in a minute: token buckets for candidates and for sampled tokens.

A request takes out what it may use at most, `n` candidates and `n * max_tokens` tokens, before it waits or samples, and
gets back what it did not use when it has ended. So no number of requests at once can pass the quota, and the price is
what was really generated, whether the caller waited for it or not. Prompts cost nothing: all candidates share one.
An observation (RecordFeedback) costs as much as one candidate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bon_server.core.errors import QuotaExceeded
from bon_server.core.types import Candidate, Request
from bon_server.serving.auth.keys import Keys, Quota
from bon_server.serving.auth.watched import Watched

PERIOD_S = 60.0
"""A bucket holds what comes in this time, and is full at first."""


@dataclass(slots=True)
class Bucket:
    """Pure: the caller brings the clock. In any time t at most a period's worth and t's worth can be taken."""

    level: float
    at_s: float

    def wait_s(self, amount: int, per_period: int, now_s: float) -> float:
        """Seconds until `amount` is there; 0: now; infinite: the bucket is too small."""
        self._fill(per_period, now_s)
        if amount > per_period:
            return math.inf
        return max(0.0, amount - self.level) * PERIOD_S / per_period

    def take(self, amount: int) -> None:
        """Below zero to give back."""
        self.level -= amount

    def _fill(self, per_period: int, now_s: float) -> None:
        self.level = min(per_period, self.level + (now_s - self.at_s) * per_period / PERIOD_S)
        self.at_s = now_s


@dataclass(slots=True)
class Reservation:
    """What one request has taken out. Settle it once, whatever became of the request."""

    took: Mapping[str, tuple[Bucket, int]]
    """By `candidates` and `tokens`, as far as these are limited."""
    _used: Mapping[str, int] = field(default_factory=dict)

    def used(self, candidates: Sequence[Candidate]) -> None:
        """What was generated, or scored where the caller brought it."""
        self._used = {
            "candidates": sum(one.completion_tokens > 0 or one.scored_ns is not None for one in candidates),
            "tokens": sum(one.completion_tokens for one in candidates),
        }

    def settle(self) -> None:
        """Gives back what was not used."""
        for name, (bucket, amount) in self.took.items():
            bucket.take(min(0, self._used.get(name, 0) - amount))


class Quotas:
    """The buckets of all principals. Without keys nobody has any."""

    def __init__(self, keys: Watched[Keys] | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def check(self, principal: str, n: int) -> None:
        """Raises `QuotaExceeded` when n candidates are not left, before the rest of a request is looked at."""
        for bucket, limit in self._limited(principal, "candidates"):
            wait_s = bucket.wait_s(n, limit, self._clock())
            if 0 < wait_s < math.inf:  # what can never be is refused once it is known to be well formed
                raise _used_up(wait_s)

    def spend(self, principal: str, n: int) -> None:
        """Takes out n candidates for good, for what is no request; raises `QuotaExceeded` when they are not left."""
        for bucket, limit in self._limited(principal, "candidates"):
            if (wait_s := bucket.wait_s(n, limit, self._clock())) > 0:
                raise _used_up(wait_s)
            bucket.take(n)

    def reserve(self, request: Request) -> Reservation:
        """Takes out what the request may use at most; raises `QuotaExceeded` when that is not there."""
        each_tokens = 0 if request.sampling is None else request.sampling.max_tokens
        took: dict[str, tuple[Bucket, int]] = {}
        longest_s = 0.0
        for name, amount in (("candidates", request.n), ("tokens", request.n * each_tokens)):
            for bucket, limit in self._limited(request.principal, name):
                wait_s = bucket.wait_s(amount, limit, self._clock())
                if math.isinf(wait_s):
                    raise QuotaExceeded(f"{amount} {name} may be needed, and this key has {limit} a minute", None)
                longest_s = max(longest_s, wait_s)
                took[name] = bucket, amount
        if longest_s > 0:
            raise _used_up(longest_s)
        for bucket, amount in took.values():
            bucket.take(amount)
        return Reservation(took)

    def _limited(self, principal: str, name: str) -> Iterator[tuple[Bucket, int]]:
        """The bucket and what it holds, where there is a limit; by the keys as the call's own was looked up."""
        quota = Quota() if self._keys is None else self._keys.latest.quota(principal)
        limit = quota.candidates_per_minute if name == "candidates" else quota.tokens_per_minute
        if limit is not None:
            yield self._buckets.setdefault((principal, name), Bucket(limit, self._clock())), limit


def _used_up(wait_s: float) -> QuotaExceeded:
    return QuotaExceeded("this key's quota is used up", math.ceil(wait_s * 1000))

"""The policy in use, and an earlier one while the last requests that began with it finish.

A request is sampled from one policy only, so that its candidates are draws from one distribution and its record names
the weights that they really came from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from bon_server.core.best_of_n import Stop
from bon_server.core.errors import RequestError, Unavailable
from bon_server.models.starting import RunningPolicy

RETRY_MS = 100
"""Pushback for a request whose weights were taken away: the new ones are in place already."""
LOST_RETRY_MS = 10_000
"""Pushback while the policy can sample nothing: an engine takes longer to start than this, a service more still."""


@dataclass(eq=False)
class _Open:
    policy: RunningPolicy
    lost: bool = False
    """Whether it was given up, though its engine may not have noticed."""
    users: set[Stop] = field(default_factory=set)
    unused: asyncio.Event = field(default_factory=asyncio.Event)


class Policies:
    """Hands out the policy in use, and replaces it.

    While it is lost it is still handed out: prompts can be read, completions that a caller brings be scored.
    """

    def __init__(self, first: RunningPolicy) -> None:
        self._open = [_Open(first)]

    @property
    def current(self) -> RunningPolicy:
        """What requests that begin now are sampled from."""
        return self._open[-1].policy

    @property
    def lost(self) -> bool:
        """Whether the policy in use can sample nothing."""
        return self._open[-1].lost or not self.current.healthy

    def check(self) -> None:
        """Raises `Unavailable` while nothing can be sampled."""
        if self.lost:
            raise Unavailable("the policy's engine is not running", LOST_RETRY_MS)

    @contextmanager
    def use(self, stop: Stop, samples: bool = True) -> Iterator[RunningPolicy]:
        """Holds the policy in use, which is not closed before this ends.

        stop: completed with `Unavailable` where the policy was given up, or replaced and this takes too long to end.
        samples: whether it is needed for more than its name; else it is not held, and nothing is stopped with it.
        """
        mine = self._open[-1]
        if not samples:
            yield mine.policy
            return
        mine.users.add(stop)
        mine.unused.clear()
        try:
            yield mine.policy
        finally:
            mine.users.remove(stop)
            if not mine.users:
                mine.unused.set()

    def share(self, policy: RunningPolicy) -> int:
        """How many of its places a request may take, so that all that use it now can have as many."""
        users = sum(len(each.users) for each in self._open if each.policy is policy)
        return policy.slots // max(1, users)

    def replace(self, policy: RunningPolicy, drain_s: float) -> Coroutine[Any, Any, None]:
        """New requests get `policy` from now on; what is returned waits until the old one is unused and closed.

        drain_s: seconds after which requests that still use the old one are stopped.
        """
        old = self._open[-1]
        self._open.append(_Open(policy))
        return self._retire(old, drain_s)

    async def _retire(self, old: _Open, drain_s: float) -> None:
        try:
            await asyncio.wait_for(_wait_unused(old), drain_s)
        except TimeoutError:
            _stop_users(old, Unavailable("the weights it was sampled from were replaced", RETRY_MS))
            await _wait_unused(old)
        await old.policy.close()
        self._open.remove(old)

    async def give_up(self, unwind_s: float) -> None:
        """The policy in use counts as lost, and what runs on it is stopped; returns once that has ended.

        unwind_s: the longest that this waits for it.
        """
        mine = self._open[-1]
        mine.lost = True
        _stop_users(mine, Unavailable("the engine made no progress", LOST_RETRY_MS))
        with suppress(TimeoutError):
            await asyncio.wait_for(_wait_unused(mine), unwind_s)

    async def close(self) -> None:
        """Closes all that are open, used or not."""
        for one in self._open:
            await one.policy.close()


def stop_with(stop: Stop, reason: RequestError) -> None:
    """Completes `stop` unless something else already has."""
    if not stop.done():
        stop.set_exception(reason)
        stop.exception()  # marks it as seen: a stop that comes too late is nobody's error


def _stop_users(one: _Open, reason: Unavailable) -> None:
    for stop in one.users:
        stop_with(stop, reason)


async def _wait_unused(one: _Open) -> None:
    if one.users:
        await one.unused.wait()

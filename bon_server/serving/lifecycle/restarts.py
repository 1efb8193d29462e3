"""Starts the policy's engine anew when it died or hung (`policy.restarts`), and gives up when that does not help.

Meanwhile the server lives: stored answers are replayed, given completions scored, the log goes on; what has to be
sampled is UNAVAILABLE, and health says NOT_SERVING.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from prometheus_client import Counter

from bon_server.core.errors import StartupError
from bon_server.models.starting import RunningPolicy, is_hung
from bon_server.serving.policies import Policies
from bon_server.system.supervision import OnDeath, start_task

logger = logging.getLogger(__name__)

FOLLOW_S = 0.25
"""How often the engine is looked at."""
UNWIND_S = 1.0
"""How long what ran on an engine that hangs may take to end, before the engine is ended."""
LAST_SCORES_S = 60.0
"""How long, once there is a new engine, completions of the old one may still be scored."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
"""Pauses before a start double, from the first to the longest."""
FORGET_S = 600.0
"""An engine that lives this long makes up for the starts before it."""

Start = Callable[[RunningPolicy], Awaitable[RunningPolicy]]
"""Starts the same policy in the place of one that is lost. Raises `StartupError`."""


class Tries:
    """How many starts there were in a row, and how long to wait before the next."""

    def __init__(self, most: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock_s = clock_s
        self._in_a_row = 0
        self._started_s: float | None = None

    def next_pause_s(self) -> float | None:
        """Counts one more; None: that would be too many."""
        if self._started_s is not None and self._clock_s() - self._started_s >= FORGET_S:
            self._in_a_row = 0
        self._started_s = None
        if self._in_a_row >= self._most:
            return None
        pause_s = FIRST_PAUSE_S
        for _ in range(self._in_a_row):
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        self._in_a_row += 1
        return pause_s

    def succeeded(self) -> None:
        """The engine is up."""
        self._started_s = self._clock_s()


class Restarts:
    """Looks after the policy's engine from `start` until `close`, or until it gives up."""

    def __init__(
        self,
        most: int,
        engine_stall_s: float,
        policies: Policies,
        start: Start,
        counted: Counter,
        on_death: OnDeath,
    ) -> None:
        """most: starts in a row. counted: a counter with the labels `role` and `result`."""
        self._most = most
        self._engine_stall_s = engine_stall_s
        self._policies = policies
        self._start = start
        self._counted = counted
        self._on_death = on_death
        self._tries = Tries(most)
        self._following: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self.gave_up: str | None = None
        """Why the server cannot go on; None while it can."""

    def start(self) -> None:
        """From now on."""
        self._following = start_task("restarts", self._follow, self._on_death)

    async def close(self) -> None:
        """Gives up an engine that is being started. May be called twice."""
        tasks = [task for task in (self._following, *self._retiring) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _follow(self) -> None:
        while self.gave_up is None:
            await asyncio.sleep(FOLLOW_S)
            policy = self._policies.current
            if not policy.healthy:
                await self._bring_back(policy, "died")
            elif is_hung(policy, self._engine_stall_s):
                await self._policies.give_up(UNWIND_S)
                await self._bring_back(policy, f"has work and has made no step for {self._engine_stall_s:g} s")

    async def _bring_back(self, lost: RunningPolicy, what: str) -> None:
        """Starts engines until one is up, or there were too many."""
        logger.error("the policy's engine %s", what)
        while (pause_s := self._tries.next_pause_s()) is not None:
            logger.warning("the policy's engine is started anew in %g s", pause_s)
            await asyncio.sleep(pause_s)
            if await self._try(lost):
                return
        self.gave_up = f"the policy's engine {what}, and policy.restarts = {self._most} starts in a row did not help"

    async def _try(self, lost: RunningPolicy) -> bool:
        """Whether there is an engine now."""
        try:
            policy = await self._start(lost)
        except Exception as error:  # whatever it is, the next start may do better
            self._counted.labels("policy", "failed").inc()
            foreseen = isinstance(error, StartupError)
            why = str(error) if foreseen else f"a bug: {type(error).__name__}"
            logger.error("the policy's engine was not started: %s", why, exc_info=None if foreseen else error)
            return False
        self._tries.succeeded()
        self._counted.labels("policy", "started").inc()
        replaced = self._policies.replace(policy, LAST_SCORES_S)
        # What cannot be ended any more keeps memory, and nothing depends on it: the server goes on.
        retiring = start_task("retiring", lambda: replaced, lambda why: None)
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)
        retiring.add_done_callback(lambda _: replaced.close())  # where it was cancelled before it began
        logger.warning("the policy's engine was started anew")
        return True

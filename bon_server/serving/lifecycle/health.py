"""What `grpc.health.v1` says of the server as a whole and of the service: whether new work can be taken on."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from grpc_health.v1 import health_pb2

from bon_server.log.spool.spool import Spool
from bon_server.models.starting import RunningReward, Started, is_hung
from bon_server.serving.content import Redaction
from bon_server.serving.lifecycle.listener import Listener
from bon_server.serving.lifecycle.restarts import Restarts
from bon_server.serving.policies import Policies
from bon_server.serving.rpc.builtin import HealthServicer
from bon_server.system.supervision import FirstDeath, start_task

logger = logging.getLogger(__name__)

FOLLOW_S = 0.25
"""How often the engines and the log are looked at."""


class Health:
    """Follows the engines and the log from `start` until `stop_serving`."""

    def __init__(
        self,
        servicer: HealthServicer,
        names: tuple[str, ...],
        policies: Policies,
        reward_model: RunningReward,
        redaction: Redaction | None,
        spool: Spool,
        engine_stall_s: float,
        restarts: Restarts | None,
        listener: Listener,
        deaths: FirstDeath,
    ) -> None:
        """restarts: looks after the policy's engine, so that the server can go on without it for a while.

        deaths: of what runs in the background and must not end.
        """
        self._servicer = servicer
        self._names = names
        self._policies = policies
        self._reward_model = reward_model
        self._redaction = redaction
        self._spool = spool
        self._engine_stall_s = engine_stall_s
        self._restarts = restarts
        self._listener = listener
        self._deaths = deaths
        self._following: asyncio.Task[None] | None = None

    @property
    def broken(self) -> str | None:
        """Why the server cannot go on; None while it can."""
        if self._restarts is not None and self._restarts.gave_up is not None:
            return self._restarts.gave_up
        if self._restarts is None and not self._policies.current.healthy:
            return "the policy's engine died"
        if not self._reward_model.healthy:
            return "the reward model can score no more"
        if self._redaction is not None and self._redaction.failure is not None:
            return self._redaction.failure
        if self._spool.failure is not None:
            return str(self._spool.failure)
        if self._listener.gave_up is not None:
            return self._listener.gave_up
        if self._deaths.why is not None:
            return self._deaths.why
        return self.hung

    @property
    def hung(self) -> str | None:
        """Which engine or reward model makes no progress, and has nobody who looks after it."""
        models: dict[str, Started] = {} if self._restarts else {"policy": self._policies.current}
        models["reward model"] = self._reward_model
        for role, model in models.items():
            if is_hung(model, self._engine_stall_s):
                return f"the {role}'s engine has work and has made no step for {self._engine_stall_s:g} s"
        return None

    async def start(self) -> None:
        """Says what is, and from now on what changes."""
        await self._say((hindrance := self._hindrance()) is None)
        self._following = start_task("health", partial(self._follow, hindrance), self._deaths.note)

    async def stop_serving(self) -> None:
        """NOT_SERVING for good."""
        if self._following is not None:
            self._following.cancel()
        await self._say(False)

    def _hindrance(self) -> str | None:
        """Why new work cannot be taken on; None: it can."""
        if self.broken is not None:
            return self.broken
        if self._policies.lost:
            return "the policy's engine is not running"
        return "no room" if self._spool.full else None

    async def _follow(self, hindrance: str | None) -> None:
        while True:
            await asyncio.sleep(FOLLOW_S)
            before, hindrance = hindrance, self._hindrance()
            if (before is None) != (hindrance is None):
                await self._say(hindrance is None)
                state = "can take new work again" if hindrance is None else f"cannot take new work: {hindrance}"
                logger.warning("the log's disk has %d MiB free; the server %s", self._spool.free_bytes >> 20, state)

    async def _say(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            await self._servicer.set(name, status)

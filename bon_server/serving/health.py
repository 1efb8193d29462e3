"""What `grpc.health.v1` says of the server as a whole and of the service: whether new work can be taken on."""

from __future__ import annotations

import asyncio
import logging

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from bon_server.log.spool import Spool
from bon_server.serving.models import RunningReward
from bon_server.serving.policies import Policies

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
        spool: Spool,
        engine_stall_s: float,
    ) -> None:
        self._servicer = servicer
        self._names = names
        self._policies = policies
        self._reward_model = reward_model
        self._spool = spool
        self._engine_stall_s = engine_stall_s
        self._following: asyncio.Task[None] | None = None

    @property
    def broken(self) -> str | None:
        """Why the server cannot go on; None while it can."""
        if not self._policies.current.healthy:
            return "the policy's engine died"
        if not self._reward_model.healthy:
            return "the reward model can score no more"
        if self._spool.failure is not None:
            return str(self._spool.failure)
        return self.hung

    @property
    def hung(self) -> str | None:
        """Which engine makes no progress; vLLM itself calls such an engine healthy."""
        for role, model in (("policy", self._policies.current), ("reward model", self._reward_model)):
            if any(engine.stalled_s > self._engine_stall_s for engine in model.engines):
                return f"the {role}'s engine has work and has made no step for {self._engine_stall_s:g} s"
        return None

    async def start(self) -> None:
        """Says what is, and from now on what changes."""
        await self._say(serving := self._can_serve())
        self._following = asyncio.create_task(self._follow(serving))

    async def stop_serving(self) -> None:
        """NOT_SERVING for good."""
        if self._following is not None:
            self._following.cancel()
        await self._say(False)

    def _can_serve(self) -> bool:
        return self.broken is None and not self._spool.full

    async def _follow(self, serving: bool) -> None:
        while True:
            await asyncio.sleep(FOLLOW_S)
            if serving != (serving := self._can_serve()):
                await self._say(serving)
                state = "can take new work again" if serving else f"cannot take new work: {self.broken or 'no room'}"
                logger.warning("the log's disk has %d MiB free; the server %s", self._spool.free_bytes >> 20, state)

    async def _say(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            await self._servicer.set(name, status)

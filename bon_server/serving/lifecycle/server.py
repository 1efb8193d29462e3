"""The server's life: log, policy, reward model, ports; serve; then drain in the opposite order.

Engines start before any gRPC object exists, because a worker forked from a process with gRPC in it may hang.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from bon_server.config.settings import Config, PolicyConfig
from bon_server.core.errors import ConfigError, StartupError, Unavailable
from bon_server.log.publish.publisher import Publisher
from bon_server.log.seal.sealer import Sealer
from bon_server.log.spool.spool import Spool
from bon_server.models.memory_plan import memory_plan
from bon_server.models.starting import (
    RunningPolicy,
    RunningReward,
    check_restarts,
    check_reward,
    check_watch,
    restart_policy,
    start_policy,
    start_reward,
    start_successor,
)
from bon_server.serving.admission.deadlines import Deadlines
from bon_server.serving.admission.descriptors import connections_that_fit
from bon_server.serving.admission.permits import Admission
from bon_server.serving.admission.quotas import Quotas
from bon_server.serving.admission.receiving import Receiving
from bon_server.serving.attempt import Attempts
from bon_server.serving.auth.access import Authentication, check_rights
from bon_server.serving.auth.guards import Guards
from bon_server.serving.content import Redaction, load_redact
from bon_server.serving.lifecycle.accepting import make_server
from bon_server.serving.lifecycle.health import Health
from bon_server.serving.lifecycle.listener import PROBE_S, Listener, listen_to
from bon_server.serving.lifecycle.ports import channel_options, open_port, refuse_taken_port, serve_metrics
from bon_server.serving.lifecycle.restarts import Restarts
from bon_server.serving.lifecycle.weights_watcher import WeightsWatcher
from bon_server.serving.policies import Policies
from bon_server.serving.rpc.builtin import HealthServicer, health_handlers, reflection_handlers
from bon_server.serving.rpc.feedback import FeedbackDesk
from bon_server.serving.rpc.service import SERVICE, Service
from bon_server.serving.telemetry.collectors import LogCollector, LoopLag, StateCollector
from bon_server.serving.telemetry.metrics import Metrics
from bon_server.system.supervision import FirstDeath

logger = logging.getLogger(__name__)

FLUSH_S = 2.0
"""How long answers that are ready may take to reach their callers while shutting down."""
LAST_BYTES_S = 0.2
"""How long their last bytes may take after that."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    config: Config
    address: str
    """`host:port` of gRPC."""
    metrics_address: str
    policies: Policies
    reward_model: RunningReward
    spool: Spool
    publisher: Publisher | None
    """None: `log.publish` is not set."""
    attempts: Attempts
    _service: Service
    _listener: Listener
    _health: Health
    _replacing: WeightsWatcher | Restarts | None
    """What may put another policy into use."""
    _resources: AsyncExitStack

    @classmethod
    async def start(cls, config: Config) -> Server:
        """Starts everything. Raises `ConfigError`, `StartupError` or `LogError`, and then leaves nothing running."""
        async with AsyncExitStack() as resources:
            if not config.log.directory:
                raise ConfigError("log.directory is empty: give --log a folder")
            guards = Guards.of(config)
            connections = connections_that_fit(config.limits.max_connections)
            redaction = load_redact(config.log.redact, config.log.redact_timeout_s)
            refuse_taken_port(config.listen.host, config.listen.port)
            if redaction is not None:
                resources.push_async_callback(redaction.close)
                await redaction.start()
            metrics = Metrics()
            spool = Spool.open(Path(config.log.directory), config.log, on_group=metrics.log_group)
            resources.push_async_callback(asyncio.to_thread, spool.close)
            publisher = None
            if config.log.publish is not None:
                publisher = Publisher(spool, config.log)
                resources.push_async_callback(asyncio.to_thread, publisher.close)
            # Closed before the publisher, which then still has what it seals.
            sealer = Sealer(spool, config.log)
            resources.push_async_callback(asyncio.to_thread, sealer.close)
            metrics.registry.register(LogCollector(spool, sealer, config.log.durability, publisher))
            check_watch(config.policy)
            check_restarts(config.policy)
            await check_reward(config.reward)
            await asyncio.to_thread(_plan_memory, config)
            policies = Policies(await start_policy(config.policy))
            resources.push_async_callback(policies.close)
            reward_model = await start_reward(config.reward)
            resources.push_async_callback(reward_model.close)
            return await cls._listen(
                config, metrics, spool, publisher, policies, reward_model, redaction, guards, connections, resources
            )

    @classmethod
    async def _listen(
        cls,
        config: Config,
        metrics: Metrics,
        spool: Spool,
        publisher: Publisher | None,
        policies: Policies,
        reward_model: RunningReward,
        redaction: Redaction | None,
        guards: Guards,
        connections: int,
        resources: AsyncExitStack,
    ) -> Server:
        deaths = FirstDeath()
        metrics_address = serve_metrics(config, metrics, guards, resources, deaths.note)
        limits = config.limits
        admission, deadlines = Admission(limits), Deadlines(limits.deadline_margin_ms)
        quotas = Quotas(guards.keys)
        attempts = Attempts(policies, reward_model, spool, admission, deadlines, metrics.committed, redaction, quotas)
        metrics.in_flight.set_function(lambda: attempts.running)
        metrics.tasks.set_function(partial(_count_tasks, asyncio.get_running_loop()))
        metrics.queued.set_function(lambda: admission.queued)
        metrics.policy_in_use(policies.current.ref)
        metrics.registry.register(StateCollector(limits, admission, policies, reward_model))
        resources.callback(LoopLag(metrics.lagged).close)
        services = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        check_rights(services)
        interceptors: list[grpc.aio.ServerInterceptor] = []
        if guards.keys is not None:
            interceptors.append(Authentication(guards.keys, metrics.refused))
        interceptors.append(receiving := Receiving(limits, metrics.message_refused))
        metrics.message_bytes.set_function(lambda: receiving.room.held_bytes)
        metrics.message_bytes_limit.set(limits.max_bytes_in_flight)
        if config.telemetry.tracing:
            interceptors.append(_trace(attempts, resources))
        desk = FeedbackDesk(spool, redaction, quotas, limits.retry_after_ms)
        resources.callback(desk.close)
        service = Service(config, policies, reward_model, attempts, metrics, desk)
        servicer = HealthServicer()
        handlers = {SERVICE: service.handlers(), **health_handlers(servicer), **reflection_handlers(services)}
        make = partial(make_server, handlers, interceptors, channel_options(limits, connections))
        host, tls = config.listen.host, guards.certificates is not None
        listener = Listener(
            partial(open_port, make, host, guards),
            partial(listen_to, host, tls=tls, within_s=PROBE_S),
            metrics.listener_restarts,
            deaths.note,
        )
        restarts = _look_after_policy(config, policies, metrics, deaths)
        following = Health(
            servicer,
            ("", SERVICE),
            policies,
            reward_model,
            redaction,
            spool,
            limits.engine_stall_s,
            restarts,
            listener,
            deaths,
        )
        address = await listener.start(config.listen.port)
        started = cls(
            config,
            address,
            metrics_address,
            policies,
            reward_model,
            spool,
            publisher,
            attempts,
            service,
            listener,
            following,
            restarts or _watch_weights(config.policy, policies, metrics, deaths),
            resources.pop_all(),
        )
        await started._health.start()
        if restarts is not None:
            restarts.start()
        return started

    @property
    def policy(self) -> RunningPolicy:
        """What new requests are sampled from."""
        return self.policies.current

    @property
    def broken(self) -> str | None:
        """Why the server cannot go on; None while it can."""
        return self._health.broken

    @property
    def hung(self) -> bool:
        """Whether it cannot go on because an engine makes no progress."""
        return self._health.hung is not None

    async def drain(self, grace_s: float) -> None:
        """Health first, then no new calls, then up to `grace_s` seconds for running ones; later ones are stopped."""
        await self._health.stop_serving()
        self.attempts.refuse_new(Unavailable("the server is shutting down", retry_after_ms=1000))
        if self._replacing is not None:
            await self._replacing.close()
        await self.attempts.drain(grace_s)

    async def stop(self) -> None:
        """Closes the port once answers have left, then models, then the log. Call `drain` first."""
        # Stopping gRPC would also wait for those who watch the health, and does not wait for the end of handlers.
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                while self._service.running:  # noqa: ASYNC110 -- for a moment, once
                    await asyncio.sleep(0.01)
        await self._listener.stop(LAST_BYTES_S)
        await self._resources.aclose()


def write_ready_file(server: Server) -> None:
    """Tells scripts that the server answers, and where. The file appears whole."""
    if server.config.listen.ready_file is None:
        return
    path = Path(server.config.listen.ready_file)
    temporary = path.with_name(f".{path.name}.tmp")
    facts = {"address": server.address, "metrics_address": server.metrics_address, "pid": os.getpid()}
    temporary.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    temporary.replace(path)


def _count_tasks(loop: asyncio.AbstractEventLoop) -> int:
    """For the thread of a scrape."""
    return len(asyncio.all_tasks(loop))


def _plan_memory(config: Config) -> None:
    """Says what the models will take, and refuses what does not fit. Raises StartupError."""
    plan = memory_plan(config)
    if plan is not None:
        logger.info("memory, in GiB: %s", plan)
        plan.check()


def _trace(attempts: Attempts, resources: AsyncExitStack) -> grpc.aio.ServerInterceptor:
    try:
        from bon_server.serving.telemetry.tracing import (  # a server that traces nothing needs no OpenTelemetry
            TracedCalls,
            Tracing,
        )
    except ImportError:
        raise StartupError("tracing needs OpenTelemetry: install bon-server with its extra [tracing]") from None
    tracing = Tracing.from_environment()
    resources.push_async_callback(asyncio.to_thread, tracing.close)
    attempts.on_stages = tracing.stages
    return TracedCalls(tracing, SERVICE)


def _look_after_policy(config: Config, policies: Policies, metrics: Metrics, deaths: FirstDeath) -> Restarts | None:
    """None: nobody does, so the server ends with the policy's engine."""
    most = config.policy.restarts
    if not most:
        return None
    start = partial(restart_policy, config.policy)
    return Restarts(most, config.limits.engine_stall_s, policies, start, metrics.engine_restarts, deaths.note)


def _watch_weights(
    config: PolicyConfig, policies: Policies, metrics: Metrics, deaths: FirstDeath
) -> WeightsWatcher | None:
    if config.watch is None:
        return None
    load = partial(start_successor, config)
    folder = Path(config.watch)
    watcher = WeightsWatcher(folder, config.watch_poll_s, config.watch_drain_s, policies, load, metrics, deaths.note)
    watcher.start()
    return watcher

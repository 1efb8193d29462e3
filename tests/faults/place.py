"""Where a case happens: a real server in this process, a real channel to it, and models that do as the case says."""

from __future__ import annotations

import asyncio
import socketserver
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.core.errors import BonError
from bon_server.log.read.reader import LogReader
from bon_server.log.record import Record
from bon_server.log.verify.verify import verify
from bon_server.serving.lifecycle import server as server_module
from bon_server.serving.lifecycle.server import Server
from tests.conftest import synthetic_config
from tests.fakes import ScriptedPolicy, ScriptedReward
from tests.serving.certificates import Authority
from tests.serving.guarded import Guard
from tests.serving.running import Refused, Running, question
from tests.waiting import SOON_S

CANARY = "canary-7c41"
PROMPT = f"{CANARY} What is {CANARY}?"
"""Must come up nowhere but in answers and in the log."""
GAUGES = ("bon_attempts_in_flight", "bon_candidates_in_flight", "bon_candidates_queued", "bon_log_queue_records")


@dataclass(frozen=True, eq=False)
class Kind:
    """Of a server. Cases that have the same one, and not merely an equal one, share a server."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    scripted: bool = True
    """With models that do as told; otherwise synthetic ones."""
    tls: bool = False
    """Mutual TLS, and a caller with a good certificate."""


@dataclass(frozen=True)
class Seen:
    """How a call ended for its caller, or a start for who started it."""

    ended: grpc.StatusCode | type[BaseException]
    answer: Any = None
    """A message, or all events of a stream."""
    refused: Refused | None = None
    said: str = ""


@dataclass
class Place(Running):
    """A server, its caller, its models."""

    policy: ScriptedPolicy = field(default_factory=ScriptedPolicy)
    reward_model: ScriptedReward = field(default_factory=ScriptedReward)
    guard: Guard | None = None
    """Of a server with TLS."""
    clients: Authority | None = None
    """Who signs certificates of its callers."""
    patch: pytest.MonkeyPatch = field(default_factory=pytest.MonkeyPatch)
    """Undone when the case ends."""
    request_id: str = ""
    """Of the case's own request."""
    rows_before: int = 0

    def begin(self, request_id: str) -> None:
        """Another case: the models do what models do, and what is logged from now on is this case's."""
        fresh, fresh_reward = ScriptedPolicy(), ScriptedReward()
        self.policy.script, self.policy.prepare, self.policy.obeys_abort = fresh.script, None, True
        self.policy.started.clear()
        self.policy.healthy = True
        self.reward_model.script = fresh_reward.script
        self.reward_model.calls.clear()
        self.request_id = request_id
        with LogReader(self.log, lambda damage: None) as log:
            self.rows_before = log.last_ordinal

    def request(self, **fields: Any) -> pb.GenerateRequest:
        """A good question under the case's id, except for these fields."""
        prompt = {} if {"text", "chat", "tokens"} & fields.keys() else {"text": PROMPT}
        return question(**({"request_id": self.request_id} | prompt | fields))

    def generate(self, timeout: float | None = None, **fields: Any) -> Any:
        """A call that is under way."""
        return self.stub.Generate(self.request(**fields), timeout=timeout)

    def stream(self, timeout: float | None = None, **fields: Any) -> Any:
        """The same as a stream."""
        return self.stub.GenerateStream(pb.GenerateStreamRequest(request=self.request(**fields)), timeout=timeout)

    def rows(self) -> list[Record]:
        """Logged since the case began."""
        return self.records()[self.rows_before :]

    def row(self) -> Record:
        """The only record under the case's id."""
        (row,) = (row for row in self.rows() if row.request_id == self.request_id)
        return row

    async def until_health(self, says: str) -> None:
        """Waits until a load balancer would hear this."""
        async with asyncio.timeout(SOON_S):
            while await self.health() != says:  # noqa: ASYNC110 -- another side's
                await asyncio.sleep(0.01)

    async def at_baseline(self, problems: tuple[str, ...] = ()) -> None:
        """Counters are back, a plain question is answered, and the log is whole, but for what these `problems` tell."""
        await self._nothing_left()
        assert (await self.ask(text=PROMPT)).n_scored == 4
        await self._nothing_left()
        report = await asyncio.to_thread(verify, self.log)
        found = {one["kind"] for one in report["problems"]}
        assert found >= set(problems) and bool(found) == bool(problems), report["problems"]

    async def _nothing_left(self) -> None:
        await self.at_rest()
        assert getattr(self.server.policy, "_aborts", {}) == {}, "samples that could still be aborted"
        assert self.server._service.running == 0
        metrics = await self.metrics()
        assert {name: metrics[name] for name in GAUGES} == dict.fromkeys(GAUGES, 0.0)
        totals = {
            total: sum(value for name, value in metrics.items() if name.startswith(f"{total}{{"))
            for total in ("bon_requests_started_total", "bon_requests_total")
        }
        assert len(set(totals.values())) == 1, totals
        assert CANARY not in str(metrics)


@asynccontextmanager
async def opened(folder: Path, kind: Kind) -> AsyncIterator[Place]:
    """A server of this kind, with its log in `folder / "log"`."""
    policy, reward_model = ScriptedPolicy(), ScriptedReward()
    guard = Guard.of(folder) if kind.tls else None
    async with AsyncExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(socketserver.BaseServer.serve_forever, "__defaults__", (0.01,))
        patch.setattr("bon_server.log.spool.upkeep.LOOK_EVERY_S", 0.02)  # at the free space, not once a second
        if kind.scripted:
            patch.setattr(server_module, "start_policy", _started(policy))
            patch.setattr(server_module, "start_reward", _started(reward_model))
        settings = {"limits.max_n": 16, **kind.settings}
        clients = None
        if guard is not None:
            clients = Authority(folder, "clients")
            tls = {name: value for name, value in guard.settings.items() if "tls" in name}
            settings |= tls | {"security.tls_client_ca": str(clients.file)}
        server = await Server.start(synthetic_config(folder / "log", **settings))
        stack.push_async_callback(server.stop)
        stack.push_async_callback(server.drain, 0.0)
        connecting: Any = grpc.aio.insecure_channel(server.address)
        if guard is not None and clients is not None:
            connecting = guard.channel(server.address, clients.signs("client"))
        channel = await stack.enter_async_context(connecting)
        await channel.channel_ready()
        log = folder / "log"
        yield Place(server, channel, log, policy=policy, reward_model=reward_model, guard=guard, clients=clients)


def _started(model: Any) -> Any:
    async def start(config: object) -> Any:
        return model

    return start


async def see(call: Any) -> Seen:
    """Waits for the end of a call, a stream, or a coroutine that makes one."""
    try:
        answer = await (_all_of(call) if isinstance(call, grpc.aio.UnaryStreamCall) else call)
    except grpc.aio.AioRpcError as error:
        refused = Refused(error.code(), error.details() or "", dict(error.trailing_metadata() or ()))
        return Seen(refused.code, refused=refused, said=refused.details)
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise
        return Seen(grpc.StatusCode.CANCELLED)
    return Seen(grpc.StatusCode.OK, answer)


async def see_start(folder: Path, **settings: Any) -> Seen:
    """How a start ends that must not succeed."""
    try:
        server = await Server.start(synthetic_config(folder, **settings))
    except BonError as error:
        return Seen(type(error), said=str(error))
    await server.drain(0)
    await server.stop()
    return Seen(grpc.StatusCode.OK)


async def _all_of(stream: Any) -> list[Any]:
    return [event async for event in stream]

"""A real server in this process, a real channel to it, and what has to be true of it whenever nobody asks anything."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from urllib.request import urlopen

import apsw
import grpc
from bon.v1 import bon_pb2 as pb
from bon.v1.bon_pb2_grpc import BestOfNServiceStub
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bon_server.log.read.reader import LogReader
from bon_server.log.record import Record
from bon_server.log.spool.database import SPOOL_NAME
from bon_server.serving.lifecycle.server import Server
from tests.waiting import SOON_S, until

if TYPE_CHECKING:
    from bon.v1.bon_pb2_grpc import BestOfNServiceAsyncStub

GENERATE = "/bon.v1.BestOfNService/Generate"


@dataclass(frozen=True)
class Refused:
    """How a call that was not answered ended."""

    code: grpc.StatusCode
    details: str
    trailing: Mapping[str, str | bytes]

    @property
    def pushback_ms(self) -> int | None:
        """When the caller may try again; None: not said."""
        given = self.trailing.get("grpc-retry-pushback-ms")
        return None if given is None else int(given)

    @property
    def violations(self) -> dict[str, str]:
        """Field → problem, from the google.rpc.BadRequest of the status."""
        status = Status.FromString(self.trailing["grpc-status-details-bin"])
        assert (status.code, status.message) == (self.code.value[0], self.details)
        bad_request = BadRequest()
        assert status.details[0].Unpack(bad_request)
        return {violation.field: violation.description for violation in bad_request.field_violations}

    @property
    def wire_bytes(self) -> int:
        """What the status weighs as gRPC sends it: messages percent-encoded, binary values in base64."""
        binary = sum(len(b64encode(value)) for value in self.trailing.values() if isinstance(value, bytes))
        return len(quote(self.details)) + binary

    @property
    def everything_said(self) -> str:
        """All that reached the caller, to search for what must not."""
        return f"{self.details} {dict(self.trailing)!r}"


@dataclass
class Running:
    """A server, a client, and the state both started from."""

    server: Server
    channel: grpc.aio.Channel
    log: Path
    tasks_before: set[asyncio.Task[Any]] = field(default_factory=asyncio.all_tasks)

    @property
    def stub(self) -> BestOfNServiceAsyncStub:
        """The service as generated code gives it."""
        return BestOfNServiceStub(self.channel)

    @property
    def admission(self) -> Any:
        """Permits."""
        return self.server.attempts._admission

    async def ask(self, within_s: float = SOON_S, **fields: Any) -> pb.GenerateResponse:
        """An answer; raises AioRpcError."""
        return await self.stub.Generate(question(**fields), timeout=within_s)

    async def refused(self, within_s: float = SOON_S, **fields: Any) -> Refused:
        """How Generate refuses a question."""
        return await refusal(self.stub.Generate(question(**fields), timeout=within_s))

    async def refused_bytes(self, method: str, data: bytes, **options: Any) -> Refused:
        """How a method refuses bytes that no stub would send."""
        call: Any = self.channel.unary_unary(method)
        return await refusal(call(data, timeout=SOON_S, **options))

    async def health(self, service: str = "") -> str:
        """`SERVING`, `NOT_SERVING`, …"""
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=SOON_S)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    async def health_becomes(self, status: str) -> None:
        """Waits until the health says so."""
        async with asyncio.timeout(SOON_S):
            while await self.health() != status:  # noqa: ASYNC110 -- asked, not notified
                await asyncio.sleep(0.01)

    def records(self) -> list[Record]:
        """What a reader of the log sees now."""
        with LogReader(self.log) as reader:
            return list(reader.records())

    def record(self, request_id: str) -> Record:
        """The only record of a request."""
        (record,) = (record for record in self.records() if record.request_id == request_id)
        return record

    @contextmanager
    def slow_disk(self) -> Iterator[None]:
        """Commits wait until the end of the block: another program holds the log's database."""
        other = apsw.Connection(str(self.log / SPOOL_NAME))
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.close()

    async def metrics(self) -> dict[str, float]:
        """Sample → value, as Prometheus would scrape them."""
        text = await asyncio.to_thread(self._scrape)
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def _scrape(self) -> str:
        with urlopen(f"http://{self.server.metrics_address}/metrics", timeout=SOON_S) as answer:
            text: str = answer.read().decode()
            return text

    async def at_rest(self) -> None:
        """Waits until nothing is running, waiting, held or scheduled any more; fails when something stays."""
        try:
            await until(lambda: not any(self.busy()))
        except TimeoutError:
            raise AssertionError(f"still there: {list(filter(None, self.busy()))}") from None

    def busy(self) -> Iterator[str]:
        """What keeps the server from being at rest."""
        in_flight = self.server.config.limits.max_candidates_in_flight
        policy, reward_model = self.server.policy, self.server.reward_model
        yield f"{self.server.attempts.running} attempts" if self.server.attempts.running else ""
        yield f"{in_flight - self.admission.free} permits" if self.admission.free != in_flight else ""
        yield f"{self.admission.queued} queued" if self.admission.queued else ""
        yield f"{getattr(policy, 'running', 0)} samples" if getattr(policy, "running", 0) else ""
        yield f"{getattr(reward_model, 'running', 0)} scores" if getattr(reward_model, "running", 0) else ""
        tasks = [task for task in asyncio.all_tasks() - self.tasks_before if _is_ours(task)]
        yield f"tasks {tasks}" if tasks else ""


def _is_ours(task: asyncio.Task[Any]) -> bool:
    """Whether it is neither the one that asks nor one that gRPC or a server keeps as long as it lives."""
    standing = ("AioServer._", "name='health'", "name='listener'")
    return task is not asyncio.current_task() and not any(name in repr(task) for name in standing)


def open_files() -> int:
    """Descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def question(**fields: Any) -> pb.GenerateRequest:
    """A small question whose candidate i has the seed i, unless fields say otherwise."""
    if not {"text", "chat", "tokens"} & fields.keys():
        fields["text"] = "question"
    fields.setdefault("n", 4)
    fields.setdefault("sampling", pb.SamplingParams(seed=0))
    fields.setdefault("view", pb.CANDIDATE_VIEW_ALL)
    return pb.GenerateRequest(**fields)


async def refusal(call: Any) -> Refused:
    """How a call that must fail fails."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return Refused(error.code(), error.details() or "", dict(error.trailing_metadata() or ()))
    raise AssertionError(f"answered instead of refused: {answer}")

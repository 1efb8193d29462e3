"""The gRPC port is opened again whatever ends the server behind it, and calls in flight go on.

With a grpcio that `accepting` does not know, one odd call ends a server: so these tests end it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bon_server.core.types import Completion
from bon_server.serving.lifecycle import accepting, listener
from bon_server.serving.lifecycle.listener import Heard, listen_to
from bon_server.serving.lifecycle.server import Server
from bon_server.serving.lifecycle.signals import run_until_signalled
from tests.conftest import StartServer
from tests.fakes import ScriptedPolicy, says
from tests.serving import frames
from tests.serving.guarded import Guard
from tests.serving.running import Running, question, refusal
from tests.waiting import SOON_S, until

pytestmark = pytest.mark.usefixtures("unknown_grpcio")
ENDED_BY = "UnicodeDecodeError"


@pytest.fixture
def unknown_grpcio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are not guarded."""
    monkeypatch.setattr(accepting, "KNOWN_GRPCIO", ("0.",))


@pytest.fixture
async def running(start_server: StartServer, tmp_path: Path) -> AsyncIterator[Running]:
    server = await start_server()
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield Running(server, channel, tmp_path / "log")


async def end(server: Server) -> None:
    """Ends the server behind the port, as a caller can."""
    host, _, port = server.address.rpartition(":")
    before = server._listener._server
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(frames.opened(frames.call(b"/\xff")))
    await until(lambda: server._listener._server is not before or server._listener.gave_up is not None)
    writer.close()


def watch_health(channel: grpc.aio.Channel) -> Any:
    """A stream of it."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return stub.Watch(health_pb2.HealthCheckRequest())


async def restarts(running: Running) -> float:
    return (await running.metrics())["bon_listener_restarts_total"]


async def test_the_next_call_is_answered_and_the_restart_counted(running: Running) -> None:
    assert await restarts(running) == 0
    for count in (1, 2, 3):
        await end(running.server)
        assert (await running.stub.Generate(question(), timeout=SOON_S, wait_for_ready=True)).n_scored == 4
        assert await restarts(running) == count
    assert await running.health() == "SERVING"
    assert running.server.broken is None


async def test_a_call_in_flight_goes_on(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = asyncio.Event()

    async def slow(index: int) -> Completion:
        await answers.wait()
        return says(f"{index}")

    running, policy = await with_policy(start_server, tmp_path, monkeypatch, slow)
    async with running.channel:
        call = running.stub.Generate(question())
        await until(lambda: policy.running == 4)
        await end(running.server)
        async with grpc.aio.insecure_channel(running.server.address) as other:
            assert await Running(running.server, other, running.log).health() == "SERVING"
        assert running.server.attempts.running == 1
        answers.set()
        assert (await call).n_scored == 4
        await until(lambda: not running.server._listener._retiring)


async def test_drain_and_stop_cover_both(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = asyncio.Event()

    async def hangs(index: int) -> Completion:
        await never.wait()
        raise AssertionError

    running, policy = await with_policy(start_server, tmp_path, monkeypatch, hangs)
    async with running.channel:
        old = running.stub.Generate(question())
        watching = watch_health(running.channel)
        await watching.read()
        await until(lambda: policy.running == 4)
        await end(running.server)
        async with grpc.aio.insecure_channel(running.server.address) as other:
            new = Running(running.server, other, running.log).stub.Generate(question())
            await until(lambda: policy.running == 8)
            assert running.server._service.running == 2
            await running.server.drain(0)
            assert {(await refusal(call)).code for call in (old, new)} == {grpc.StatusCode.UNAVAILABLE}
            await asyncio.wait_for(running.server.stop(), SOON_S)
    assert running.server._service.running == 0


async def with_policy(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Any
) -> tuple[Running, ScriptedPolicy]:
    policy = ScriptedPolicy(script)

    async def start(config: object) -> ScriptedPolicy:
        return policy

    monkeypatch.setattr("bon_server.serving.lifecycle.server.start_policy", start)
    server = await start_server()
    return Running(server, grpc.aio.insecure_channel(server.address), tmp_path / "log"), policy


async def test_a_port_that_somebody_else_took_ends_the_server(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "PAUSES_S", (0.01,))
    server = running.server
    host, _, port = server.address.rpartition(":")
    async with grpc.aio.insecure_channel(server.address) as channel:
        watching = watch_health(channel)
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        ending = asyncio.create_task(run_until_signalled(server, asyncio.Queue()))
        with taking(monkeypatch, host, int(port)):
            await end(server)
            assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert await asyncio.wait_for(ending, SOON_S) == 1
    assert "could not be opened again" in caplog.text


class taking:
    """Somebody else binds the port the moment it is free."""

    def __init__(self, patch: pytest.MonkeyPatch, host: str, port: int) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._where = host, port
        self._patch = patch

    def __enter__(self) -> None:
        open_port = listener.Listener._replace

        async def late(one: listener.Listener) -> None:
            await until(self._takes)
            await open_port(one)

        self._patch.setattr(listener.Listener, "_replace", late)

    def _takes(self) -> bool:
        try:
            self._socket.bind(self._where)
        except OSError:
            return False
        self._socket.listen()
        return True

    def __exit__(self, *_: object) -> None:
        self._socket.close()


async def test_a_server_that_stops_silently_is_noticed_by_the_probe(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing ends its loop, and nobody answers."""
    monkeypatch.setattr(listener, "PROBE_EVERY_S", 0.01)
    before = running.server._listener._server

    async def silent(port: int) -> Heard:
        return Heard.ANSWER if running.server._listener._server is not before else Heard.NOTHING

    monkeypatch.setattr(running.server._listener, "_probe", silent)
    await until(lambda: running.server._listener._server is not before)
    assert (await running.stub.Generate(question(), timeout=SOON_S, wait_for_ready=True)).n_scored == 4
    assert await restarts(running) == 1


@pytest.mark.parametrize("callers", ["anybody", "TLS", "mutual TLS"])
async def test_the_probe_hears_an_answer(start_server: StartServer, guard: Guard, callers: str) -> None:
    guard.key()
    settings = {} if callers == "anybody" else guard.settings
    if callers == "mutual TLS":
        settings["security.tls_client_ca"] = str(guard.authority.file)
    host, _, port = (await start_server(**settings)).address.rpartition(":")
    assert await listen_to(host, int(port), tls=bool(settings), within_s=SOON_S) is Heard.ANSWER


async def test_the_probe_hears_nothing_and_refusals() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for tls in (False, True):
            assert await listen_to("0.0.0.0", port, tls, within_s=0.1) is Heard.NOTHING
    assert await listen_to("127.0.0.1", port, tls=False, within_s=SOON_S) is Heard.REFUSED


@pytest.fixture(autouse=True)
def nothing_unhandled(caplog: pytest.LogCaptureFixture) -> None:
    """Instead of the folder's: here gRPC's own fault is what is tested, and it does end up with the event loop."""
    caplog.set_level(logging.INFO)

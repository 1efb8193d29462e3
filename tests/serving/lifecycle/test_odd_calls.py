"""Calls that no client library makes: each gets a status, and the port goes on."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
from bon.v1 import bon_pb2 as pb
from grpc_health.v1 import health_pb2

from bon_server.serving.auth.access import RIGHTS
from bon_server.serving.rpc.service import SERVICE
from tests.serving import frames
from tests.serving.conftest import Run
from tests.serving.guarded import Guard, shows
from tests.serving.knocking import exchange
from tests.serving.running import Running, question
from tests.waiting import SOON_S, until

ODD_PATHS = [
    b"/\xff",
    b"\xff\xfe",
    b"/bon.v1.BestOfNService/\xc3",
    b"/\xed\xa0\x80",
    b"/\xf8\x88\x80\x80\x80",
    b"",
    b"/\x00",
]
"""Not UTF-8, but for the last two."""
WATCH = b"/grpc.health.v1.Health/Watch"


@pytest.mark.parametrize("path", ODD_PATHS)
async def test_a_path_that_is_not_utf_8_is_refused_and_the_port_goes_on(run: Run, path: bytes) -> None:
    running = await run()
    answered = await exchange(running.server.address, frames.opened(frames.call(path)))
    assert answered.get("grpc-status", "12") == "12", "UNIMPLEMENTED, or the connection is cut"
    assert (await running.ask()).n_scored == 4
    assert (await running.metrics())["bon_listener_restarts_total"] == 0


async def test_also_over_tls_with_keys(guard: Guard, start_server: Any) -> None:
    key = guard.key()
    server = await start_server(**guard.settings)
    context = ssl.create_default_context(cafile=str(guard.authority.file))
    context.set_alpn_protocols(["h2"])
    answered = await exchange(server.address, frames.opened(frames.call(b"/\xff")), context)
    assert answered["grpc-status"] == "16", "who shows no key is not told which methods there are"
    async with guard.channel(server.address) as channel:
        running = Running(server, channel, Path("unused"))
        assert (await running.stub.Generate(question(), metadata=shows(key), timeout=SOON_S)).n_scored == 4


async def test_a_thousand_of_them_leave_nothing(run: Run) -> None:
    running = await run()
    for _ in range(10):
        sent = b"".join(frames.call(b"/\xff", stream=1 + 2 * number) for number in range(100))
        await exchange(running.server.address, frames.opened(sent))
    await until(lambda: not any(running.busy()))
    assert (await running.ask()).n_scored == 4


@pytest.mark.parametrize("method", sorted(RIGHTS))
async def test_a_call_without_a_message_gets_a_status(run: Run, method: str) -> None:
    running = await run()
    answered = await exchange(running.server.address, frames.opened(frames.call(method.encode())))
    streams = "ServerReflectionInfo" in method  # no message is a conversation of no words
    assert answered["grpc-status"] == ("0" if streams else "3")
    await running.at_rest()


async def test_an_empty_message_is_one(run: Run) -> None:
    running = await run()
    answered = await exchange(
        running.server.address, frames.opened(frames.call(b"/bon.v1.BestOfNService/GetServerInfo", b""))
    )
    assert answered["grpc-status"] == "0"
    answered = await exchange(running.server.address, frames.opened(frames.call(b"/bon.v1.BestOfNService/Score", b"")))
    assert answered["grpc-status"] == "3"


async def test_a_caller_who_leaves_before_the_message_leaves_nothing(run: Run) -> None:
    running = await run()
    path = b"/bon.v1.BestOfNService/Generate"
    sent = frames.call(path, ends=False) + frames.frame(frames.RST_STREAM, 0, 1, (8).to_bytes(4, "big"))
    host, _, port = running.server.address.rpartition(":")
    for _ in range(20):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(frames.opened(sent))
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    assert (await running.ask()).n_scored == 4
    await running.at_rest()


async def test_the_interceptors_see_methods_that_nobody_has(guard: Guard, start_server: Any) -> None:
    key = guard.key()
    server = await start_server(**guard.settings)
    async with guard.channel(server.address) as channel:
        call: Any = channel.unary_unary("/bon.v1.BestOfNService/Nothing")
        for metadata, code in (((), "UNAUTHENTICATED"), (shows(key), "UNIMPLEMENTED")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(pb.GenerateRequest().SerializeToString(), metadata=metadata, timeout=SOON_S)
            assert caught.value.code().name == code


async def test_a_watcher_who_takes_nothing_holds_up_nobody(run: Run) -> None:
    running = await run()
    host, _, port = running.server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    no_room = b"\x00\x04" + bytes(4)  # SETTINGS_INITIAL_WINDOW_SIZE
    writer.write(frames.OPENING + frames.frame(frames.SETTINGS, 0, 0, no_room) + frames.call(WATCH, b""))
    async with asyncio.timeout(SOON_S):
        while frames.HEADERS not in [kind for kind, *_ in frames.read(await reader.read(999))]:
            pass
    for serving in (False, True) * 10:
        await asyncio.wait_for(running.server._health._say(serving), SOON_S)
    assert await running.health() == "SERVING"
    await asyncio.wait_for(running.server.drain(0), SOON_S)
    await asyncio.wait_for(running.server.stop(), SOON_S)
    writer.close()


async def test_the_health_of_all_is_listed(run: Run) -> None:
    running = await run()
    call: Any = running.channel.unary_unary("/grpc.health.v1.Health/List")
    messages: Any = health_pb2
    said = messages.HealthListResponse.FromString(await call(b"", timeout=SOON_S)).statuses
    assert {name: each.status for name, each in said.items()} == dict.fromkeys(("", SERVICE), 1)

"""A scan from outside, of the ports themselves: plain text, old TLS, certificates, and where metrics are to be had."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bon_server.config.settings import Config
from bon_server.serving.lifecycle.server import Server
from tests.conftest import StartServer
from tests.serving.certificates import Authority
from tests.serving.guarded import ANYWHERE, Guard, audited, refused, shows
from tests.serving.knocking import PREFACE, speak, talking
from tests.serving.running import Running
from tests.waiting import SOON_S

pytestmark = pytest.mark.usefixtures("looked_at_each_time")
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


@pytest.fixture
async def server(guard: Guard, start_server: StartServer) -> Server:
    """Somebody has a key."""
    guard.key()
    return await start_server(**guard.settings)


async def test_plain_text_is_not_answered_on_the_tls_port(server: Server, guard: Guard) -> None:
    for said in (PREFACE, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
        answer = await asyncio.to_thread(speak, server.address, None, said)
        assert b"HTTP" not in answer and b"\x04" not in answer[3:4], answer
    async with grpc.aio.insecure_channel(server.address) as channel:
        assert (await refused(channel, "/grpc.health.v1.Health/Check")).code is grpc.StatusCode.UNAVAILABLE
    async with guard.channel(server.address) as channel:
        assert await Running(server, channel, Path("/nowhere")).health() == "SERVING", "it lives"


async def test_a_plain_server_does_answer_the_preface(start_server: StartServer) -> None:
    """Or the test above would say nothing."""
    answer = await asyncio.to_thread(speak, (await start_server()).address, None, PREFACE)
    assert answer[3] == 4, "a SETTINGS frame"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_old_versions_of_tls_are_refused(server: Server, guard: Guard, version: ssl.TLSVersion) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.to_thread(speak, server.address, talking(guard, version), PREFACE)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_newer_ones_are_not(server: Server, guard: Guard, version: ssl.TLSVersion) -> None:
    assert (await asyncio.to_thread(speak, server.address, talking(guard, version), PREFACE))[3] == 4


async def test_a_certificate_is_no_key(guard: Guard, start_server: StartServer) -> None:
    """That nobody gets in without one of the authority's is in the fault catalogue."""
    key = shows(guard.key())
    clients = Authority(guard.folder, "clients")
    server = await start_server(**guard.settings, **{"security.tls_client_ca": str(clients.file)})
    async with guard.channel(server.address, clients.signs("client")) as channel:
        assert await Running(server, channel, Path("/nowhere")).health() == "SERVING"
        info = await refused(channel, "/bon.v1.BestOfNService/GetServerInfo")
        assert info.code is UNAUTHENTICATED
        assert (await refused(channel, "/bon.v1.BestOfNService/Score", key, b"\xff")).code is not UNAUTHENTICATED


async def test_a_new_certificate_is_taken_without_a_restart(
    guard: Guard, start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    key = guard.key()
    server = await start_server(**guard.settings)
    host, _, port = server.address.rpartition(":")

    async def shown() -> str:
        return await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)), timeout=SOON_S)

    async with guard.channel(server.address) as open_before:
        stub = Running(server, open_before, Path("/nowhere"))
        assert await stub.health() == "SERVING"
        first, renewed = await shown(), guard.authority.signs("renewed")
        guard.server.cert.write_bytes(renewed.cert.read_bytes())
        assert await shown() == first, "the new certificate does not fit the old key"
        assert [r.levelname for r in caplog.records if "unencrypted private key" in r.getMessage()] == ["ERROR"]
        guard.server.replace_by(renewed)
        assert await shown() == renewed.cert.read_text()
        assert await stub.health() == "SERVING", "connections go on"
        async with guard.channel(server.address) as channel:
            found = await refused(channel, "/bon.v1.BestOfNService/Generate", shows(key), b"\xff")
            assert found.code is grpc.StatusCode.INVALID_ARGUMENT
    assert server.broken is None


def test_metrics_are_on_loopback_by_default() -> None:
    assert Config().listen.metrics_host == Config().listen.host == "127.0.0.1"


async def test_metrics_stay_on_loopback_when_grpc_does_not(guard: Guard, start_server: StartServer) -> None:
    guard.key()
    server = await start_server(**guard.settings, **{"listen.host": ANYWHERE})
    assert server.address.startswith(ANYWHERE)
    port = int(server.metrics_address.rpartition(":")[2])
    assert server.metrics_address == f"127.0.0.1:{port}"
    assert ("127.0.0.1", port) in listening() and ("0.0.0.0", port) not in listening()


def listening() -> set[tuple[str, int]]:
    """IPv4 sockets of this machine that listen."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        if state == "0A":
            address, _, port = local.partition(":")
            found.add((socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)))
    return found


async def test_metrics_beyond_loopback_want_tls_and_an_admin(
    guard: Guard, start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    admin, other = guard.key("watcher", ("admin",)), guard.key("anna", ("generate", "score", "feedback"))
    server = await start_server(**guard.settings, **{"listen.metrics_host": ANYWHERE})
    port = int(server.metrics_address.rpartition(":")[2])

    def scrape(**headers: str) -> tuple[int, bytes]:
        context = ssl.create_default_context(cafile=str(guard.authority.file))
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=SOON_S, context=context)
        connection.request("GET", "/metrics", headers=headers)
        answer = connection.getresponse()
        with answer:
            found = answer.status, answer.read()
        connection.close()
        return found

    def scan() -> Iterator[int]:
        for headers in ({}, {"Authorization": "Bearer watcher.x"}, {"Authorization": f"Bearer {other}"}):
            status, body = scrape(**headers)
            assert b"bon_" not in body
            yield status

    silent = socket.create_connection(("127.0.0.1", port))  # a caller that says nothing must not stop the others
    assert await asyncio.to_thread(list, scan()) == [401, 401, 403]
    status, body = await asyncio.to_thread(scrape, Authorization=f"Bearer {admin}")
    assert status == 200 and b"bon_attempts_in_flight" in body
    silent.close()
    plain = await asyncio.to_thread(speak, f"127.0.0.1:{port}", None, b"GET /metrics HTTP/1.0\r\n\r\n")
    assert b"bon_" not in plain and b"HTTP" not in plain
    with pytest.raises((ssl.SSLError, ConnectionError)):
        old = talking(guard, ssl.TLSVersion.TLSv1_1)
        await asyncio.to_thread(speak, f"127.0.0.1:{port}", old, b"GET /metrics HTTP/1.0\r\n\r\n")
    found = audited(caplog.records)
    assert [(each["principal"], each["code"]) for each in found] == [
        ("", "UNAUTHENTICATED"),
        ("", "UNAUTHENTICATED"),
        ("anna", "PERMISSION_DENIED"),
    ]

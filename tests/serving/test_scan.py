"""A scan from outside: every method of every service, with every key that does not open it, and every wrong protocol.

What there is to scan is asked of the server itself, by reflection, so that a method that comes later is scanned too.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import socket
import ssl
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from bon.v1.bon_pb2_grpc import BestOfNServiceStub
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from bon_server.config import Config
from bon_server.errors import ConfigError, StartupError
from bon_server.serving import auth, watched
from bon_server.serving.auth import RIGHTS, Access, check_rights
from bon_server.serving.keys import Right
from bon_server.serving.server import Server
from tests.conftest import StartServer
from tests.serving.certificates import Authority
from tests.serving.guarded import Guard, audited, refused, shows
from tests.serving.running import Running, question
from tests.waiting import SOON_S

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
HEALTH = "/grpc.health.v1.Health/"
ODD = ("/bon.v1.BestOfNService/Nothing", "/no.such.Service/Method", "/canary", "/grpc.health.v1.Health/Nothing")


@pytest.fixture(autouse=True)
def looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are."""
    monkeypatch.setattr(watched, "LOOK_S", 0.0)


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard.of(tmp_path)


@pytest.fixture
async def server(guard: Guard, start_server: StartServer) -> Server:
    guard.key("all")
    for right in Right:
        guard.key(right, (right,))
    return await start_server(**guard.settings)


def listed(guard: Guard, address: str, key: str) -> list[str]:
    """Paths of all methods that reflection tells of."""

    class WithKey(grpc.AuthMetadataPlugin):
        def __call__(self, context: object, callback: grpc.AuthMetadataPluginCallback) -> None:
            callback(shows(key), None)

    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(guard.authority.file.read_bytes()), grpc.metadata_call_credentials(WithKey())
    )
    with grpc.secure_channel(address, credentials) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        return [
            f"/{service}/{method}"
            for service in database.get_services()
            for method in pool.FindServiceByName(service).methods_by_name
        ]


async def test_no_method_but_health_is_open_without_a_key(
    server: Server, guard: Guard, caplog: pytest.LogCaptureFixture
) -> None:
    methods = await asyncio.to_thread(listed, guard, server.address, guard.key("scanner", ("feedback",)))
    assert set(methods) == set(RIGHTS)
    closed = [method for method in methods if not method.startswith(HEALTH)]
    assert len(closed) == 6
    good = guard.key("all")
    wrong = ["all", "", "all.", f"{good}x", good[:-1], good.replace("all.", "generate."), "nobody.secret", "x" * 8000]
    presented = [(), (("authorization", good),), (("authorization", f"Basic {good}"),), shows(good) * 2]
    presented += [(("authorization", "Bearer"),), (("x-api-key", good),)]
    presented += [shows(key) for key in wrong]
    async with guard.channel(server.address) as channel:
        for method in (*closed, *ODD):
            for metadata in presented:
                found = await refused(channel, method, metadata)
                assert found.code is UNAUTHENTICATED, (method, metadata, found)
                assert good not in found.everything_said
    assert len(audited(caplog.records)) == (len(closed) + len(ODD)) * len(presented)
    assert {each["code"] for each in audited(caplog.records)} == {"UNAUTHENTICATED"}
    # Not gRPC's own debug messages, which name the method of a call that is cancelled.
    said = "\n".join(str(vars(record)) for record in caplog.records if record.levelno >= logging.INFO)
    assert "canary" not in said and "no.such" not in said, "not even names that a caller made up"
    assert good not in said


async def test_a_key_opens_what_its_right_is_for_and_nothing_else(
    server: Server, guard: Guard, caplog: pytest.LogCaptureFixture
) -> None:
    async with guard.channel(server.address) as channel:
        for right in Right:
            key = shows(guard.key(right, (right,)))
            for method, needed in RIGHTS.items():
                if not isinstance(needed, Right) or needed is right:
                    continue
                found = await refused(channel, method, key)
                assert found.code is grpc.StatusCode.PERMISSION_DENIED, (method, right)
                assert needed in found.details
    assert {each["principal"] for each in audited(caplog.records)} == set(Right)
    assert {each["code"] for each in audited(caplog.records)} == {"PERMISSION_DENIED"}


async def test_what_is_opened_is_open(server: Server, guard: Guard) -> None:
    async with guard.channel(server.address) as channel:
        running = Running(server, channel, Path("/nowhere"))
        for service in ("", "bon.v1.BestOfNService"):
            assert await running.health(service) == "SERVING", "without a key"
        for right in Right:
            key = shows(guard.key(right, (right,)))
            for method, needed in RIGHTS.items():
                if needed is right or needed is Access.ANY_KEY:
                    found = await refused(channel, method, key, b"\xff\xff")
                    assert found.code is grpc.StatusCode.INVALID_ARGUMENT, "it came to the handler, which read it"
            for method in ODD:
                assert (await refused(channel, method, key)).code is grpc.StatusCode.UNIMPLEMENTED


async def test_a_method_nobody_has_decided_on_is_closed_and_is_no_start(
    guard: Guard, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    undecided = "/bon.v1.BestOfNService/Score"
    key = guard.key()
    server = await start_server(**guard.settings)
    monkeypatch.delitem(auth.RIGHTS, undecided)
    async with guard.channel(server.address) as channel:
        assert (await refused(channel, undecided)).code is UNAUTHENTICATED
        assert (await refused(channel, undecided, shows(key))).code is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(StartupError, match=undecided):
        check_rights(["bon.v1.BestOfNService"])
    with pytest.raises(StartupError, match=undecided):
        await start_server(**{"log.directory": str(guard.folder / "other")})


async def test_revoked_and_added_keys_and_a_file_that_is_spoilt(
    guard: Guard, start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    old = guard.key("anna")
    server = await start_server(**guard.settings)
    info = "/bon.v1.BestOfNService/GetServerInfo"
    async with guard.channel(server.address) as channel:

        async def opens(key: str) -> bool:
            found = await refused(channel, info, shows(key), b"\xff")
            assert found.code in (UNAUTHENTICATED, grpc.StatusCode.INVALID_ARGUMENT)
            return found.code is grpc.StatusCode.INVALID_ARGUMENT

        new = guard.key("anna")
        assert await opens(old) and await opens(new), "two keys of one name, while callers change over"
        before = guard.keys.read_text()
        guard.keys.write_text("[[key]\n")
        assert await opens(old), "a file that cannot be read changes nothing"
        assert await opens(new)
        assert [r.levelname for r in caplog.records if "not TOML" in r.getMessage()] == ["ERROR"], "and is told once"
        guard.keys.unlink()
        assert await opens(old)
        guard.keys.write_text(before[: before.rindex("[[key]]")])
        assert await opens(old) and not await opens(new)
        guard.keys.write_text("# nobody any more\n")
        assert not await opens(old)


async def test_keys_are_looked_at_beside_the_event_loop(
    guard: Guard, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = guard.key("anna", candidates_per_minute=60)
    server = await start_server(**guard.settings)
    threads = set()
    identity = watched._identity

    def looked_at(path: Path) -> tuple[int, ...] | None:
        threads.add(threading.current_thread())
        return identity(path)

    monkeypatch.setattr(watched, "_identity", looked_at)
    async with guard.channel(server.address) as channel:
        for method in ("GetServerInfo", "Generate"):
            found = await refused(channel, f"/bon.v1.BestOfNService/{method}", shows(key), b"\xff")
            assert found.code is grpc.StatusCode.INVALID_ARGUMENT
        await BestOfNServiceStub(channel).Generate(question(), metadata=shows(key))
    assert threads and threading.current_thread() not in threads


# The way there


def speak(address: str, context: ssl.SSLContext | None, said: bytes) -> bytes:
    """What a port answers to these bytes."""
    host, _, port = address.rpartition(":")
    with ExitStack() as open_sockets:
        spoken = open_sockets.enter_context(socket.create_connection((host, int(port)), timeout=SOON_S))
        if context is not None:
            spoken = open_sockets.enter_context(context.wrap_socket(spoken, server_hostname=host))
        spoken.sendall(said)
        try:
            return spoken.recv(100)
        except ConnectionError:
            return b""


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""With an empty SETTINGS frame, to which a server answers with its own: nine bytes or more."""


async def test_plain_text_is_not_answered_on_the_tls_port(server: Server, guard: Guard) -> None:
    for said in (PREFACE, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
        answer = await asyncio.to_thread(speak, server.address, None, said)
        assert b"HTTP" not in answer and b"\x04" not in answer[3:4], answer
    async with grpc.aio.insecure_channel(server.address) as channel:
        assert (await refused(channel, f"{HEALTH}Check")).code is grpc.StatusCode.UNAVAILABLE
    async with guard.channel(server.address) as channel:
        assert await Running(server, channel, Path("/nowhere")).health() == "SERVING", "it lives"


async def test_a_plain_server_does_answer_the_preface(start_server: StartServer) -> None:
    """Or the test above would say nothing."""
    answer = await asyncio.to_thread(speak, (await start_server()).address, None, PREFACE)
    assert answer[3] == 4, "a SETTINGS frame"


def talking(guard: Guard, version: ssl.TLSVersion) -> ssl.SSLContext:
    """A client that speaks this version of TLS and no later one."""
    context = ssl.create_default_context(cafile=str(guard.authority.file))
    context.set_alpn_protocols(["h2"])
    context.set_ciphers("ALL:@SECLEVEL=0")  # or OpenSSL would not even try
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = version
    return context


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


# Metrics


@pytest.fixture
def anywhere() -> str:
    """All addresses of this machine, which is more than loopback."""
    return "0.0.0.0"


def test_metrics_are_on_loopback_by_default() -> None:
    assert Config().listen.metrics_host == Config().listen.host == "127.0.0.1"


async def test_metrics_stay_on_loopback_when_grpc_does_not(
    guard: Guard, start_server: StartServer, anywhere: str
) -> None:
    guard.key()
    server = await start_server(**guard.settings, **{"listen.host": anywhere})
    assert server.address.startswith(anywhere)
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
    guard: Guard, start_server: StartServer, anywhere: str, caplog: pytest.LogCaptureFixture
) -> None:
    admin, other = guard.key("watcher", ("admin",)), guard.key("anna", ("generate", "score", "feedback"))
    server = await start_server(**guard.settings, **{"listen.metrics_host": anywhere})
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


# What may be started

OPEN_STARTS = [
    {"listen.host": "0.0.0.0"},
    {"listen.host": "::"},
    {"listen.host": ""},
    {"listen.host": "203.0.113.1"},
    {"listen.host": "some-name"},
    {"listen.metrics_host": "0.0.0.0"},
]


@pytest.mark.parametrize("settings", OPEN_STARTS, ids=str)
@pytest.mark.parametrize("has", ["nothing", "TLS", "keys"])
async def test_other_addresses_need_tls_and_keys(
    guard: Guard, start_server: StartServer, settings: dict[str, str], has: str
) -> None:
    guard.key()
    part = {name: value for name, value in guard.settings.items() if name.startswith(f"security.{has.lower()[:3]}")}
    part |= {"security.api_keys": str(guard.keys)} if has == "keys" else {}
    with pytest.raises(ConfigError) as caught:
        await start_server(**settings, **part)
    for name in {"nothing": ("TLS", "API keys"), "TLS": ("API keys",), "keys": ("TLS",)}[has]:
        assert f"{name} (" in str(caught.value)
    assert next(iter(settings)) in str(caught.value)
    assert not (guard.folder / "log").exists(), "nothing was touched"


async def test_insecure_where_that_is_what_was_asked_for(
    start_server: StartServer, anywhere: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_server(**{"listen.host": anywhere, "security.allow_insecure": True})
    port = server.address.rpartition(":")[2]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        running = Running(server, channel, Path("/nowhere"))
        for _ in range(3):
            await running.stub.Generate(question())
    warnings = [each for each in caplog.records if "other machines" in each.getMessage()]
    assert [each.levelname for each in warnings] == ["WARNING"], "once"
    await start_server(**{"security.allow_insecure": True, "log.directory": f"{running.log}-2"})


BAD_FILES = {
    "no key to the certificate": {"security.tls_key": None},
    "no certificate to the key": {"security.tls_cert": None},
    "no such certificate": {"security.tls_cert": "/no/such.pem"},
    "a key that does not fit": {"security.tls_key": "other.key"},
    "an encrypted key": {"security.tls_cert": "locked.pem", "security.tls_key": "locked.key"},
    "not a certificate": {"security.tls_cert": "keys.toml"},
    "no authority": {"security.tls_client_ca": "keys.toml"},
    "no such keys": {"security.api_keys": "/no/such.toml"},
    "keys that are not TOML": {"security.api_keys": "server.pem"},
    "no keys": {"security.api_keys": "/dev/null"},
}


@pytest.mark.parametrize("changed", BAD_FILES.values(), ids=BAD_FILES.keys())
async def test_files_that_cannot_be_used_are_no_start(
    guard: Guard, start_server: StartServer, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str | None]
) -> None:
    monkeypatch.chdir(guard.folder)
    guard.key()
    guard.authority.signs("other")
    guard.authority.signs("locked", password=b"secret")
    settings = {name: value for name, value in (guard.settings | changed).items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        await start_server(**settings)
    assert "\n" not in str(caught.value)
    named = next(iter(changed.values())) or "TLS"
    assert named in str(caught.value)

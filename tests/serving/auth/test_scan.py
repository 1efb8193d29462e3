"""A scan from outside: every method of every service, with every key that does not open it.

What there is to scan is asked of the server itself, by reflection, so that a method that comes later is scanned too.
The port below the methods, with every wrong protocol, is in test_scan_ports.py.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import grpc
import pytest
from bon.v1.bon_pb2_grpc import BestOfNServiceStub
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from bon_server.core.errors import StartupError
from bon_server.serving.auth import access, watched
from bon_server.serving.auth.access import RIGHTS, Access, check_rights
from bon_server.serving.auth.keys import Right
from bon_server.serving.lifecycle.server import Server
from tests.conftest import StartServer
from tests.serving.guarded import Guard, audited, refused, shows
from tests.serving.running import Running, question

pytestmark = pytest.mark.usefixtures("looked_at_each_time")
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
HEALTH = "/grpc.health.v1.Health/"
ODD = ("/bon.v1.BestOfNService/Nothing", "/no.such.Service/Method", "/canary", "/grpc.health.v1.Health/Nothing")


@pytest.fixture
async def server(guard: Guard, start_server: StartServer) -> Server:
    """There is a key with each of the rights."""
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
    monkeypatch.delitem(access.RIGHTS, undecided)
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

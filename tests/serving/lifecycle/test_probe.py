"""`bon health` against a real server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import bon
import pytest

from bon_server.cli import probe
from bon_server.serving.lifecycle.server import Server
from bon_server.serving.rpc.service import SERVICE
from tests.command import Ended, run_bon
from tests.conftest import synthetic_config
from tests.fakes import ScriptedPolicy
from tests.serving.certificates import Authority
from tests.serving.conftest import Run


async def ask(*words: str) -> Ended:
    """What the command does, in a thread, since the server is on this loop."""
    return await asyncio.to_thread(run_bon, "health", "--timeout", "10", *words)


async def test_a_server_that_can_serve_and_then_cannot(run: Run) -> None:
    policy = ScriptedPolicy()
    running = await run(policy)
    target = running.server.address
    done = await ask("--target", target)
    assert (done.exit_code, done.stdout) == (0, "SERVING\n")
    assert (await ask("--target", target, "--service", SERVICE)).exit_code == 0
    done = await ask("--target", target, "--service", "nothing")
    assert (done.exit_code, done.stdout) == (1, "SERVICE_UNKNOWN\n")
    policy.healthy = False
    async with asyncio.timeout(15):
        while (done := await ask("--target", target)).exit_code == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert (done.exit_code, done.stdout) == (1, "NOT_SERVING\n")
    assert (await ask("--target", target, "--alive")).exit_code == 0


async def test_nobody_there(unused_tcp_port: int) -> None:
    done = await ask("--target", f"127.0.0.1:{unused_tcp_port}")
    assert (done.exit_code, done.stdout) == (1, "NOT_REACHED (UNAVAILABLE)\n")
    assert (await ask("--target", f"127.0.0.1:{unused_tcp_port}", "--alive")).exit_code == 1


async def test_a_server_with_tls_and_keys(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.signs("server")
    keys = tmp_path / "keys.toml"
    run_bon("keys", "new", "a", "--file", str(keys), "--rights", "generate")
    server = await Server.start(
        synthetic_config(
            tmp_path / "log",
            **{
                "security.tls_cert": str(files.cert),
                "security.tls_key": str(files.key),
                "security.api_keys": str(keys),
            },
        )
    )
    try:
        done = await ask("--target", server.address, "--tls-ca", str(authority.file))
        assert (done.exit_code, done.stdout) == (0, "SERVING\n"), "without a key"
        other = Authority(tmp_path, "other")
        assert (await ask("--target", server.address, "--tls-ca", str(other.file), "--timeout", "2")).exit_code == 1
        assert (await ask("--target", server.address, "--timeout", "2")).exit_code == 1
    finally:
        await server.drain(0)
        await server.stop()


async def test_plain_text_where_tls_is_asked_for(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    running = await run()
    authority = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.write_text("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
    said = await asyncio.to_thread(probe.health, running.server.address, timeout_s=5.0, tls_ca=authority)
    assert said.startswith("NOT_REACHED")
    done = await ask("--target", running.server.address, "--tls-ca", "/no/such/file")
    assert done.exit_code == 1


async def test_a_certificate_without_key_is_no_plain_text(run: Run) -> None:
    running = await run()
    done = await ask("--target", running.server.address, "--tls-cert", "/no/such/file")
    assert isinstance(done.exception, bon.SecurityError), done.stdout
    done = await ask("--target", running.server.address, "--tls-cert", "/no/such/file", "--tls-key", "/no/such/file")
    assert isinstance(done.exception, FileNotFoundError), done.stdout

"""How clients get in, and what they never give away."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import bon
import grpc
import pytest
from bon.security import Security, is_local, secured

from bon_server.serving.lifecycle.server import Server
from tests.conftest import StartServer
from tests.serving.certificates import Authority
from tests.serving.guarded import Guard

LOCAL = "127.0.0.1:1"


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard.of(tmp_path)


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("127.0.0.1:50051", True),
        ("127.9.9.9:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("dns:///localhost:1", True),
        ("ipv4:127.0.0.1:1", True),
        ("ipv6:%5B::1%5D:1", True),
        ("unix:/run/bon.sock", True),
        ("bon.example:50051", False),
        ("127.evil.example:1", False),
        ("localhost.example:1", False),
        ("10.0.0.1:1", False),
        ("[::2]:1", False),
        ("0.0.0.0:1", False),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("", False),
    ],
)
def test_what_counts_as_this_machine(target: str, local: bool) -> None:
    assert is_local(target) is local


def test_a_key_never_goes_to_another_machine_in_plain_text(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("a.secret\n")
    for security, environment in (
        (Security(api_key="a.secret"), {}),
        (Security(api_key_file=file), {}),
        (Security(), {"BON_API_KEY": "a.secret"}),
    ):
        with pytest.raises(bon.SecurityError, match="plain text") as caught:
            secured("bon.example:1", None, security, environment)
        assert "secret" not in str(caught.value)
        sent = (None, (("authorization", "Bearer a.secret"),))
        assert secured(LOCAL, None, security, environment) == sent
        assert secured("bon.example:1", None, Security(allow_insecure=True, **security), environment) == sent
        credentials, metadata = secured("bon.example:1", None, Security(tls=True, **security), environment)
        assert credentials is not None and metadata == sent[1]
    assert secured("bon.example:1", None, Security(), {}) == (None, ())


def test_a_file_comes_before_the_environment(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("of.file")
    _, metadata = secured(LOCAL, None, Security(api_key_file=tmp_path / "key"), {"BON_API_KEY": "of.environment"})
    assert metadata == (("authorization", "Bearer of.file"),)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "two keys": ({"api_key": "a", "api_key_file": "b"}, "both"),
    "an empty file": ({"api_key_file": os.devnull}, "holds no API key"),
    "two lines": ({"api_key": "a\nb"}, "holds no API key"),
    "a certificate without key": ({"tls_cert": "x"}, "go together"),
    "a key without certificate": ({"tls_key": "x"}, "go together"),
    "no certificate in it": ({"tls_ca": os.devnull}, "no PEM certificate"),
}


@pytest.mark.parametrize(("security", "said"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_used(security: dict[str, Any], said: str) -> None:
    with pytest.raises(bon.SecurityError, match=said):
        bon.Client(LOCAL, **security)


def test_misspelt_options_are_named() -> None:
    with pytest.raises(TypeError, match="tls_kee"):
        bon.Client(LOCAL, tls_kee="x")  # type: ignore[call-arg]


# Against a real server


@pytest.fixture
async def server(guard: Guard, start_server: StartServer) -> Server:
    clients = Authority(guard.folder, "clients")
    clients.signs("client")
    (guard.folder / "key").write_text(guard.key("anna", ("generate",)))
    return await start_server(**guard.settings, **{"security.tls_client_ca": str(clients.file)})


def way_in(folder: Path) -> Security:
    return Security(
        api_key_file=folder / "key",
        tls_ca=folder / "authority.pem",
        tls_cert=folder / "client.pem",
        tls_key=folder / "client.key",
    )


async def test_both_clients_over_mutual_tls_with_a_key(server: Server, guard: Guard) -> None:
    guard.authority.file  # noqa: B018 -- writes it

    def blocking() -> str:
        with bon.Client(server.address, **way_in(guard.folder)) as client:
            return client.generate("hello", n=2).best.text

    assert await asyncio.to_thread(blocking)
    async with bon.AsyncClient(server.address, **way_in(guard.folder)) as client:
        assert (await client.server_info()).version
        with pytest.raises(grpc.RpcError) as caught:
            await client.score("hello", ["a"])
        assert bon.describe(caught.value) == "PERMISSION_DENIED: this API key has not the right score"


@pytest.mark.slow
async def test_the_commands_over_mutual_tls_with_a_key(server: Server, guard: Guard, tmp_path: Path) -> None:
    guard.authority.file  # noqa: B018 -- writes it
    (tmp_path / "lines").write_text('{"prompt": "hello"}\n' * 3)
    tls = ["--tls-ca", "authority.pem", "--tls-cert", "client.pem", "--tls-key", "client.key"]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("BON_")}

    def bon_command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bon_server.cli", *words, "--target", server.address],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=ours | environment,
            timeout=60,
        )

    def commands() -> None:
        asked = bon_command("ask", "hello", "-n", "2", "--json", *tls, "--api-key-file", "key")
        assert json.loads(asked.stdout)["n_scored"] == 2, asked.stderr
        harvest = ("harvest", "lines", "-n", "2", "--json", *tls)
        harvested = bon_command(*harvest, BON_API_KEY=(tmp_path / "key").read_text())
        assert json.loads(harvested.stdout)["candidates"] == 6, harvested.stderr
        without = bon_command(*harvest)
        assert without.returncode == 1 and "UNAUTHENTICATED" in without.stderr + without.stdout
        half = bon_command("ask", "hello", "--tls-cert", "client.pem")
        assert (half.returncode, half.stderr) == (2, "bon: tls_cert and tls_key go together\n")

    await asyncio.to_thread(commands)

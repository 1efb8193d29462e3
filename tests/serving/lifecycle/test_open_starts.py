"""What is refused before anything is opened: other addresses without protection, files of no use."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from bon_server.core.errors import ConfigError
from tests.conftest import StartServer
from tests.serving.guarded import ANYWHERE, Guard
from tests.serving.running import Running, question

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
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start_server(**{"listen.host": ANYWHERE, "security.allow_insecure": True})
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

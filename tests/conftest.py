"""The real server as a fixture: real gRPC, real log, models that need no weights."""

from __future__ import annotations

import atexit
import socketserver
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from bon_server.config.settings import Config, load
from bon_server.models.vllm.ending import mute_the_end
from bon_server.serving.lifecycle.server import Server

hypothesis.settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("no deadline")


atexit.register(mute_the_end)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In parallel runs (`-n 2 --dist loadgroup`) a file stays in one process, and all tests with real models in one.

    This runs before the hook of pytest-xdist, which reads the marks. Two engines at once would compete for the same
    cores.
    """
    for item in items:
        group = "models" if item.get_closest_marker("models") else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


StartServer = Callable[..., Awaitable[Server]]


@pytest.fixture
async def start_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StartServer]:
    """Starts servers on free ports and stops them when the test ends.

    `await start_server(**{"limits.max_n": 4})`; the log is in `tmp_path / "log"` unless said otherwise.
    """
    # The metrics endpoint notices its end only when it polls, every half second unless told otherwise.
    monkeypatch.setattr(socketserver.BaseServer.serve_forever, "__defaults__", (0.01,))
    async with AsyncExitStack() as started:

        async def start(**settings: Any) -> Server:
            server = await Server.start(synthetic_config(tmp_path / "log", **settings))
            started.push_async_callback(server.stop)
            started.push_async_callback(server.drain, 0.0)
            return server

        yield start


def synthetic_config(log: Path, **settings: Any) -> Config:
    """Synthetic models, free ports, and no influence from the environment."""
    defaults: dict[str, Any] = {
        "policy.model": "synthetic",
        "reward.models": ["synthetic"],
        "log.directory": str(log),
        "listen.port": 0,
        "listen.metrics_port": 0,
    }
    return load(None, {}, defaults | settings)

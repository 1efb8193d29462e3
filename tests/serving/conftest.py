"""Servers whose rest is checked when the test ends, and models that do as the test says."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

import grpc
import pytest

from bon_server.serving.auth import watched
from bon_server.serving.lifecycle import server as server_module
from tests.conftest import StartServer
from tests.fakes import ScriptedPolicy, ScriptedReward
from tests.serving.guarded import Guard
from tests.serving.running import Running
from tests.serving.watching import Loader, Watch, Watching


class Run(Protocol):
    """`await run(policy, reward_model, {"limits.max_n": 4})`."""

    def __call__(
        self,
        policy: ScriptedPolicy | None = None,
        reward_model: ScriptedReward | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Awaitable[Running]:
        """Starts a server, with scripted models where given, and opens a channel to it."""


@pytest.fixture
async def run(start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Run]:
    """Starts servers; when the test ends each of them has to come to rest."""
    async with AsyncExitStack() as started:

        async def start(
            policy: ScriptedPolicy | None = None,
            reward_model: ScriptedReward | None = None,
            settings: Mapping[str, Any] | None = None,
        ) -> Running:
            for name, model in (("start_policy", policy), ("start_reward", reward_model)):
                if model is not None:
                    monkeypatch.setattr(server_module, name, _answering(model))
            server = await start_server(**(settings or {}))
            channel = await started.enter_async_context(grpc.aio.insecure_channel(server.address))
            await channel.channel_ready()
            running = Running(server, channel, tmp_path / "log")
            started.push_async_callback(running.at_rest)
            return running

        yield start


@pytest.fixture
def watch(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """`await watch(first policy, settings)`."""

    async def start(first: ScriptedPolicy, **settings: Any) -> Watching:
        folder = tmp_path / "checkpoints"
        folder.mkdir()
        loader = Loader()
        monkeypatch.setattr(server_module, "start_successor", loader)
        monkeypatch.setattr(server_module, "memory_plan", lambda config: None)  # its policy has no files
        watched = {"policy.model": "scripted", "policy.watch": str(folder), "policy.watch_poll_s": 0.01}
        return Watching(await run(first, settings=watched | settings), folder, loader)

    return start


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    """Files of a server with TLS and keys."""
    return Guard.of(tmp_path)


@pytest.fixture
def looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are watched are."""
    monkeypatch.setattr(watched, "LOOK_S", 0.0)


@pytest.fixture(autouse=True)
def nothing_unhandled(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No exception may end up with the event loop: its handler would print messages, which may hold prompts."""
    caplog.set_level(logging.DEBUG)
    gc.freeze()  # only what the test makes has to be looked through at its end
    yield
    gc.collect()  # what was never looked at is reported when it is collected
    unhandled = [
        record.getMessage()
        for when in ("setup", "call", "teardown")
        for record in caplog.get_records(when)
        if record.name in ("asyncio", "grpc._cython.cygrpc")
        and record.levelno >= logging.ERROR
        # gRPC's own: it says so whenever a caller leaves while a message is on its way to it.
        and "ExecuteBatchError" not in record.getMessage()
    ]
    assert unhandled == []


def _answering(model: Any) -> Any:
    async def start(config: object) -> Any:
        return model

    return start

"""A server that watches a folder of checkpoints, and what stands for loading them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bon.v1 import bon_pb2 as pb

from bon_server.config.settings import PolicyConfig
from bon_server.core.types import Completion, PolicyRef
from tests.fakes import ScriptedPolicy, named_after_index
from tests.serving.running import Running
from tests.waiting import SOON_S, until

Script = Callable[[int], Awaitable[Completion]]


@dataclass(eq=False)
class Weights(ScriptedPolicy):
    """A policy that remembers whether it was closed."""

    closed: bool = False

    async def close(self) -> None:
        """Once."""
        assert not self.closed
        self.closed = True


def weights(revision: str, script: Script = named_after_index) -> Weights:
    """A policy of this revision."""
    return Weights(script, ref=PolicyRef("scripted", revision))


@dataclass
class Loader:
    """Stands for `start_successor`: what it makes of each directory, by name."""

    outcomes: dict[str, Weights | Exception | None] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    pause: Callable[[], Awaitable[Any]] | None = None
    given_up: int = 0

    async def __call__(self, config: PolicyConfig, serving: object, directory: Path) -> Weights | None:
        """Loads."""
        self.asked.append(directory.name)
        try:
            if self.pause is not None:
                await self.pause()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        outcome = self.outcomes[directory.name]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@dataclass
class Watching:
    """A server that watches a folder."""

    running: Running
    folder: Path
    loader: Loader

    def put(self, name: str, outcome: Weights | Exception | None) -> None:
        """A checkpoint appears whole."""
        self.loader.outcomes[name] = outcome
        fresh = self.folder / f".{name}"
        fresh.mkdir()
        (fresh / "config.json").write_text("{}")
        fresh.rename(self.folder / name)

    async def revision(self) -> str:
        """What GetServerInfo says."""
        return (await self.running.stub.GetServerInfo(pb.GetServerInfoRequest())).policy.revision

    async def loaded(self, revision: str) -> None:
        """Waits until new requests get it."""
        await until(lambda: self.running.server.policy.ref.revision == revision)
        assert await self.revision() == revision

    async def refused(self, times: int) -> None:
        """Waits until so many checkpoints were refused, and looks a few times more."""
        name = 'bon_policy_changes_total{result="refused"}'
        async with asyncio.timeout(SOON_S):
            while (await self.running.metrics()).get(name, 0) < times:  # noqa: ASYNC110 -- scraped, not notified
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert (await self.running.metrics())[name] == times


Watch = Callable[..., Awaitable[Watching]]

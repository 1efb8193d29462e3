"""Follows a folder of checkpoints (`policy.watch`): the newest one is loaded, tested, and put into use.

Whatever is wrong with a checkpoint, what is served goes on being served; it is said once, and tried again only when
its files change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from bon_server.core.errors import StartupError
from bon_server.models.policy.checkpoints import Checkpoint, checkpoints
from bon_server.models.starting import RunningPolicy
from bon_server.serving.policies import Policies
from bon_server.serving.telemetry.metrics import Metrics
from bon_server.system.supervision import OnDeath, start_task

logger = logging.getLogger(__name__)

Load = Callable[[RunningPolicy, Path], Awaitable[RunningPolicy | None]]
"""Starts a policy beside the one in use, tested; None: these are the weights in use. Raises `StartupError`."""


class WeightsWatcher:
    """Looks at the folder from `start` until `close`."""

    def __init__(
        self,
        folder: Path,
        poll_s: float,
        drain_s: float,
        policies: Policies,
        load: Load,
        metrics: Metrics,
        on_death: OnDeath,
    ) -> None:
        self._folder = folder
        self._poll_s = poll_s
        self._drain_s = drain_s
        self._policies = policies
        self._load = load
        self._metrics = metrics
        self._on_death = on_death
        self._in_use: Checkpoint | None = None
        self._before: list[Checkpoint] = []
        self._refused: set[Checkpoint] = set()
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """From now on."""
        self._watching = start_task("weights", self._watch, self._on_death)

    async def close(self) -> None:
        """Gives up a checkpoint that is being loaded. May be called twice."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait((self._watching,))

    async def _watch(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(self._poll_s)

    async def _look(self) -> None:
        """Takes the newest checkpoint that may be taken; one that changed since the last look is being written."""
        found = await asyncio.to_thread(checkpoints, self._folder)
        before, self._before = self._before, found
        self._refused.intersection_update(found)
        for checkpoint in found:
            if checkpoint == self._in_use:
                return
            if checkpoint in before and checkpoint not in self._refused and await self._take(checkpoint):
                return

    async def _take(self, checkpoint: Checkpoint) -> bool:
        """Whether the checkpoint is in use now."""
        old = self._policies.current
        logger.info("policy: loading %s", checkpoint.directory)
        try:
            new = await self._load(old, checkpoint.directory)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it must not cost the server the policy it has
            self._refuse(checkpoint, error)
            return False
        self._in_use = checkpoint
        if new is None:
            logger.info("policy: %s has the weights in use", checkpoint.directory)
            return True
        self._metrics.policy_changes.labels("loaded").inc()
        self._metrics.policy_in_use(new.ref)
        logger.info(
            "policy: revision %s (%s) replaces %s (%s)", new.ref.revision, new.ref.id, old.ref.revision, old.ref.id
        )
        await self._policies.replace(new, self._drain_s)
        return True

    def _refuse(self, checkpoint: Checkpoint, error: Exception) -> None:
        self._refused.add(checkpoint)
        self._metrics.policy_changes.labels("refused").inc()
        why = str(error) if isinstance(error, StartupError) else f"a bug: {type(error).__name__}"
        logger.error(
            "policy: %s is refused, revision %s stays in use: %s",
            checkpoint.directory,
            self._policies.current.ref.revision,
            why,
            exc_info=None if isinstance(error, StartupError) else error,
        )

"""Background threads and tasks that must not end unseen.

Python ends a thread that raises and goes on; asyncio keeps a task's exception until somebody asks for it. Both leave a
server that looks well and has stopped sealing, publishing or following its engines. So whatever runs in the background
for as long as the server does starts here, with a word on who is to be told when it breaks.

One rule: an error that a loop expects (no room on the disk, a store that is away) it counts and tries again. Anything
else is a bug, and the part that depends on the loop fails for good: the log for a thread of the log, the server for the
rest. What is logged is the type of the exception and where it was raised, never its message, which may quote a prompt.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

OnDeath = Callable[[str], None]
"""Told once, in the thread or task that ended, what ended it. Must not raise."""


def start_thread(name: str, run: Callable[[], None], on_death: OnDeath) -> threading.Thread:
    """A daemon thread that runs `run` once. What leaves `run`, `SystemExit` too, is logged and goes to `on_death`."""

    def supervised() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 -- a thread that raises SystemExit ends without a word
            on_death(_told(f"the thread {name}", error))

    thread = threading.Thread(target=supervised, name=name, daemon=True)
    thread.start()
    return thread


def start_task(name: str, work: Callable[[], Coroutine[Any, Any, None]], on_death: OnDeath) -> asyncio.Task[None]:
    """A task of the running loop. What leaves `work` is logged and goes to `on_death`, but for its cancellation."""

    async def supervised() -> None:
        try:
            await work()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 -- whatever it is
            on_death(_told(f"the task {name}", error))

    return asyncio.create_task(supervised(), name=name)


class FirstDeath:
    """Keeps why the first of several broke; for any thread."""

    def __init__(self) -> None:
        self.why: str | None = None
        """None: all of them run, or have ended as they should."""

    def note(self, why: str) -> None:
        """An `OnDeath`."""
        self.why = self.why or why


def place_of(error: BaseException) -> str:
    """Type and innermost place of an exception, without its message: `KeyError in sealing.py:131, _seal_range`."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}, {frames[-1].name}" if frames else ""
    return f"{type(error).__name__}{where}"


def _told(what: str, error: BaseException) -> str:
    why = f"{what} ended by a bug: {place_of(error)}"
    # Names of files and functions, without the lines' text: enough to report it.
    calls = " > ".join(f"{Path(one.filename).name}:{one.lineno}" for one in traceback.extract_tb(error.__traceback__))
    logger.critical("%s (%s)", why, calls)
    return why

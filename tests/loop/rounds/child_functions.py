"""What `test_child` has processes do. A module of its own, which children import in no time."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

from bon_server.core.errors import RoundFailed

_HELD: list[Any] = []


def counted(up_to: int, tell: Callable[[Any], None]) -> tuple[int, int]:
    """Tells each number; returns its process and the last."""
    for number in range(up_to):
        tell(number)
    return os.getpid(), up_to


def failing(message: str, tell: Callable[[Any], None]) -> None:
    """Raises what a command shows in one sentence."""
    raise RoundFailed(message)


def with_semaphore(tell: Callable[[Any], None]) -> str:
    """The name of a semaphore that is there until the process ends."""
    lock = multiprocessing.Lock()
    _HELD.append(lock)
    return str(lock._semlock.name)  # type: ignore[attr-defined]


def dying(tell: Callable[[Any], None]) -> None:
    """Ends as the kernel ends what has no memory left."""
    os.kill(os.getpid(), signal.SIGKILL)

"""Heavy work in a process of its own, which gives its memory back when it is done, and whose death harms nobody."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from bon_server.engine.child_process import live_and_die_with_parent
from bon_server.errors import StartupError

Result = TypeVar("Result")


async def in_child(function: Callable[..., Result], *arguments: object) -> Result:
    """Runs a function of a module, after everything else on this machine. Arguments and result are pickled.

    The process ends with this one, and at once when this is cancelled. Raises what the function raises, and
    StartupError when its process dies.
    """
    earlier = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    pool = ProcessPoolExecutor(max_workers=1, mp_context=spawn, initializer=_begin)
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)
    except BrokenProcessPool as error:
        raise StartupError("the process that loads it to test it died; was there memory for it?") from error
    except asyncio.CancelledError:
        for process in set(multiprocessing.active_children()) - earlier:
            process.kill()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin() -> None:
    live_and_die_with_parent()
    os.nice(10)  # what is served goes first

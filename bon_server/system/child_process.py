"""Processes of our own, each of which lives and dies with its parent.

`in_child` runs a heavy step in a process of its own (spawned, so that no thread's lock comes along): the step gives its
memory back when it is done, and its death harms nobody. Imports nothing heavy, since it runs early in that process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from bon_server.core.errors import BonError, StartupError


def live_and_die_with_parent() -> None:
    """Leaves the terminal's process group, and kills this process and its children as soon as its parent is gone.

    Called in a child that `multiprocessing` started; does nothing elsewhere.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    os.setpgid(0, 0)

    def watch() -> None:
        try:
            wait([parent.sentinel])
            for child in multiprocessing.active_children():
                child.kill()
        finally:  # also where this thread has a bug: nobody would watch any more
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


Result = TypeVar("Result")


async def in_child_async(function: Callable[..., Result], *arguments: object) -> Result:
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


Tell = Callable[[Any], None]
_END_TIMEOUT_S = 30.0


def in_child(function: Callable[..., Result], *arguments: object, tell: Tell = lambda _: None) -> Result:
    """What `function(*arguments, tell)` returns; a function of a module, everything pickled.

    Raises the `BonError` that the function raises, and StartupError when its process ends without a result.
    """
    ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_run, args=(theirs, function, arguments), name=f"bon {function.__name__}"
    )
    process.start()
    theirs.close()
    try:
        while True:
            kind, value = ours.recv()
            if kind == "told":
                tell(value)
                continue
            process.join(_END_TIMEOUT_S)  # for it to clean up, or the semaphores of its libraries stay
            if kind == "raised":
                raise value
            result: Result = value
            return result
    except EOFError:
        process.join()
        raise StartupError(
            f"the process for {function.__name__} ended with code {process.exitcode}; was there memory for it?"
        ) from None
    finally:
        process.kill()
        process.join()


def _run(parent: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    live_and_die_with_parent()
    try:
        result = function(*arguments, lambda value: parent.send(("told", value)))
    except BonError as error:
        parent.send(("raised", error))
    else:
        parent.send(("done", result))

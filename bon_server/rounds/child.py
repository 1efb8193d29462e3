"""A step with a model in it, in a process of its own: its memory is given back, and it dies with this one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from bon_server.engine.child_process import live_and_die_with_parent
from bon_server.errors import BonError, StartupError

Result = TypeVar("Result")
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

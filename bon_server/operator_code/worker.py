"""The process that calls a function of the operator's. Imports nothing heavy: it starts anew after each kill.

Plain functions run in the main thread, one call at a time, so `signal.alarm` works in them; async functions run on an
event loop, many at a time. The server kills this process when a call does not end. SIGTERM and SIGINT do nothing here:
service managers send them to all processes, and the server still drains. What the function prints goes to stderr.
"""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

import msgspec

from bon_server.config.specs import import_module
from bon_server.core.errors import StartupError
from bon_server.operator_code.guard import place_of, told
from bon_server.operator_code.messages import Answer, Batch, Call, Frames, Kind, Setup, frame

TIMEOUT = "timeout"
_PR_SET_PDEATHSIG = 1
_READ_BYTES = 1 << 16

Function = Callable[..., Any]


def main() -> None:
    """Reads calls from the socket whose descriptor is the first argument; the second one is the server's process id."""
    _die_with(int(sys.argv[2]))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ignore)  # unlike SIG_IGN this is not inherited by programs that the function starts
    _tell_no_messages()
    server = socket.socket(fileno=int(sys.argv[1]))
    server.set_inheritable(False)
    frames = Frames()
    pending: list[bytes] = []
    while not pending:
        data = server.recv(_READ_BYTES)
        if not data:
            return
        pending += frames.feed(data)
    setup = msgspec.msgpack.decode(pending.pop(0), type=Setup)
    function = _load(setup, server)
    if is_async(function):
        asyncio.run(_AsyncCalls(setup, function, server).serve(frames, pending))
    else:
        _serve_plain(setup, function, server, frames, pending)


def is_async(function: Any) -> bool:
    """Whether calling it gives something to wait for; also an object whose `__call__` is async."""
    call = getattr(function, "__call__", None)  # noqa: B004 -- an object whose __call__ is async
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def as_answer(number: int, kind: Kind, value: object) -> Answer:
    """A number is a reward (True is 1), one too large for a float is infinite; a text is a text."""
    if kind == "text":
        if isinstance(value, str):
            return Answer(number, str.__str__(value).encode().decode())  # half a surrogate pair could not be sent
        return Answer(number, error=f"the function returned {type(value).__name__}, not a text")
    if not isinstance(value, Real):
        return Answer(number, error=f"the function returned {type(value).__name__}, not a number")
    try:
        return Answer(number, float(value))
    except OverflowError:
        return Answer(number, float("inf"))


def raised(number: int, error: BaseException) -> Answer:
    """The type and the place of what the function raised."""
    return Answer(number, error=type(error).__name__, place=place_of(error))


def _load(setup: Setup, server: socket.socket) -> Function:
    """Tells the server that the function is there, or why it is not."""
    try:
        function: Function = getattr(import_module(setup.what, setup.module), setup.name)
    except StartupError as error:
        server.sendall(frame(Answer(0, error=str(error))))
        raise SystemExit(1) from None
    except BaseException as error:  # noqa: BLE001 -- the operator's code may raise anything
        server.sendall(frame(Answer(0, error=f"{setup.what}: importing {setup.module} raised {type(error).__name__}")))
        raise SystemExit(1) from None
    server.sendall(frame(Answer(0)))
    return function


def _serve_plain(setup: Setup, function: Function, server: socket.socket, frames: Frames, pending: list[bytes]) -> None:
    """Answers each call before it begins the next one, so the server knows which call is running."""
    with asyncio.Runner() as runner:
        while True:
            for message in pending:
                for call in msgspec.msgpack.decode(message, type=Batch).calls:
                    server.sendall(frame(_answer_plain(setup, function, call, runner)))
            data = server.recv(_READ_BYTES)
            if not data:
                return
            pending = list(frames.feed(data))


def _answer_plain(setup: Setup, function: Function, call: Call, runner: asyncio.Runner) -> Answer:
    try:
        value = function(*call.positional, **call.named)
        if inspect.isawaitable(value):  # for example of a lambda around an async function
            value = runner.run(_wait_for(value))
        return as_answer(call.id, setup.kind, value)
    except BaseException as error:  # noqa: BLE001 -- the operator's code may raise anything
        return raised(call.id, error)


async def _wait_for(awaitable: Any) -> Any:
    return await awaitable


class _AsyncCalls:
    """Calls of an async function that run at the same time."""

    def __init__(self, setup: Setup, function: Function, server: socket.socket) -> None:
        self._setup = setup
        self._function = function
        self._server = server
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def serve(self, frames: Frames, pending: list[bytes]) -> None:
        """Until the server is gone."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_report)
        reader, self._writer = await asyncio.open_connection(sock=self._server)
        while True:
            for message in pending:
                self._begin(msgspec.msgpack.decode(message, type=Batch))
            data = await reader.read(_READ_BYTES)
            if not data:
                os._exit(0)  # the tasks that are left may refuse to be cancelled
            pending = list(frames.feed(data))

    def _begin(self, batch: Batch) -> None:
        for call in batch.calls:
            task = asyncio.get_running_loop().create_task(self._run(call))
            self._tasks[call.id] = task
            task.add_done_callback(partial(self._end, call.id))
        for number in batch.cancelled:
            if number in self._tasks:
                self._tasks[number].cancel()

    def _end(self, number: int, task: asyncio.Task[None]) -> None:
        """Also answers calls that were cancelled before they began."""
        del self._tasks[number]
        if task.cancelled():
            self._writer.write(frame(Answer(number, error="CancelledError")))

    async def _run(self, call: Call) -> None:
        self._writer.write(frame(await self._answer(call)))

    async def _answer(self, call: Call) -> Answer:
        try:
            async with asyncio.timeout(self._setup.timeout_s) as limit:
                value = await _caught(self._function, call)
        except TimeoutError:
            return Answer(call.id, error=TIMEOUT)
        except asyncio.CancelledError as error:
            return raised(call.id, error)
        if limit.expired():  # the function caught the cancellation
            return Answer(call.id, error=TIMEOUT)
        if isinstance(value, Answer):
            return value
        try:
            return as_answer(call.id, self._setup.kind, value)
        except BaseException as error:  # noqa: BLE001 -- the operator's `__float__` may raise anything
            return raised(call.id, error)


async def _caught(function: Function, call: Call) -> Any:
    """What the function returned, or an `Answer` that tells what it raised.

    A KeyboardInterrupt or SystemExit that left a task would end the event loop.
    """
    try:
        return await function(*call.positional, **call.named)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return raised(call.id, error)  # nobody cancelled this call: it came out of the function
    except BaseException as error:  # noqa: BLE001 -- the operator's code may raise anything
        return raised(call.id, error)


def _die_with(server_pid: int) -> None:
    """The kernel kills this process when the server dies, also while the function holds the interpreter's lock."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server_pid:
        os._exit(1)  # it died before


def _ignore(number: int, _: object) -> None:
    """A signal that is the server's business."""


def _tell_no_messages() -> None:
    """Exceptions that nobody catches are told by type and place: Python's own reports would quote values."""
    sys.excepthook = lambda _, error, __: _say(error)
    sys.unraisablehook = lambda unraisable: _say(unraisable.exc_value)
    threading.excepthook = lambda given: _say(given.exc_value)


def _report(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    _say(context.get("exception"))


def _say(error: BaseException | None) -> None:
    if error is not None:
        sys.stderr.write(f"operator code: {told(error)}\n")


if __name__ == "__main__":
    main()

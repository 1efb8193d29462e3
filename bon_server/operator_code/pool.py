"""Worker processes that call one function of the operator's, each call with a time limit that really ends it.

A thread cannot be ended from outside, and a regular expression that runs away holds the interpreter's lock; so the
function runs in processes, and the one whose call is late is killed and replaced. The call that was late, or that
killed its process, fails; the other calls of that process are made again. Which async call it was cannot be seen from
outside, so each of them is made again in a worker to itself.

pebble's ProcessPool also kills workers on a time-out. It was not taken: it gives a worker one task at a time and knows
no async functions, so a judge that is asked over the network would need a process for each call in flight; and a
thread of its own looks for late tasks and results, where this pool is driven by the server's event loop.

Workers start with a fresh interpreter, not by fork, which a process with gRPC or torch threads does not survive.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import cast

import msgspec

from bon_server.core.errors import StartupError
from bon_server.operator_code.messages import Answer, Call, Calls, Frames, Setup, frame
from bon_server.operator_code.worker import TIMEOUT
from bon_server.system.telemetry import Telemetry

logger = logging.getLogger(__name__)

DIED, BROKEN = "worker died", "no worker"
"""Reasons of `Answer.error`, beside `TIMEOUT`: the process ended during the call; no process can be started."""
START_S = 60.0
"""How long a worker may take to import the operator's module."""
STARTS = 5
"""After so many starts in a row that failed, the pool gives up."""
BACK_OFF_S = 0.1
MAX_BACK_OFF_S = 5.0
"""Pause before a worker that did no work is replaced: the first, doubled each time, up to the second."""
ABANDONED_S = 1.0
"""A plain call that nobody waits for any more is ended after so long, if others wait for a worker."""
UNYIELDING_S = 1.0
"""How long after its limit an async call may take to end before its worker is killed: it keeps the event loop."""
AHEAD_S = 0.004
"""Plain calls that take no longer than this together are sent to a worker at once."""
MAX_AHEAD = 16
ASYNC_CALLS = 128
"""Calls of an async function that run at the same time in a worker."""
LOOK_S = 0.1
"""How often late calls are looked for; a call is late when it was so at two looks, with the socket read between."""
MOST_PROCESSES = 4
"""As many as there are CPUs, but no more, unless the operator says otherwise."""
END_S = 5.0
"""How long the kernel may take to end processes that were killed."""


class _Waiting:
    """A call on its way."""

    __slots__ = ("alone", "encoded", "future", "id", "sent_s")

    def __init__(self, number: int, encoded: bytes, future: asyncio.Future[Answer]) -> None:
        self.id = number
        self.encoded = msgspec.Raw(encoded)
        self.future = future
        self.sent_s = 0.0
        self.alone = False
        """Whether its worker died or was killed, perhaps by its fault: now it gets a worker to itself."""


class PoolTelemetry(Telemetry):
    """Stalled while no worker is up. A call that is late is no stall: it is ended, and others go on."""

    def __init__(self) -> None:
        super().__init__()
        self.down_since_s: float | None = None
        """When the last worker went, or was first wanted; None: one is up, or none was wanted yet."""

    @property
    def stalled_s(self) -> float:
        """Since there was a worker, in seconds."""
        return 0.0 if self.down_since_s is None else time.monotonic() - self.down_since_s


class WorkerPool:
    """`processes` workers. Starts them at the first call or by `start`; lives on one event loop."""

    def __init__(self, setup: Setup, processes: int, is_async: bool) -> None:
        self.setup = setup
        self.telemetry = PoolTelemetry()
        self.failure: str | None = None
        """Why there will be no worker any more; None: there is one, or will be."""
        self.is_async = is_async
        self._processes = processes
        self._workers: set[_Worker] = set()
        self._queue: deque[_Waiting] = deque()
        self._calls = 0
        self._failed_starts = 0
        self._idle_deaths = 0
        self._replacing = 0
        self._dispatching = False
        self._looking: asyncio.TimerHandle | None = None
        self._up: asyncio.Event = asyncio.Event()

    async def start(self) -> None:
        """Starts the workers and waits for the first one. Raises StartupError when none can be started."""
        self._start_workers()
        await self._up.wait()
        if self.failure is not None:
            raise StartupError(self.failure)

    def call(
        self, positional: tuple[str, ...] = (), named: Mapping[str, object] | None = None
    ) -> asyncio.Future[Answer]:
        """The answer; never an exception. Cancel the future to withdraw the call."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._calls += 1
        number = self._calls
        if self.failure is not None:
            future.set_result(Answer(number, error=BROKEN))
            return future
        try:
            encoded = msgspec.msgpack.encode(Call(number, positional, dict(named or {})))
        except UnicodeEncodeError as error:  # half a surrogate pair
            future.set_result(Answer(number, error=type(error).__name__))
            return future
        self._queue.append(_Waiting(number, encoded, future))
        self._start_workers()
        self.dispatch_soon()
        return future

    async def close(self) -> None:
        """Kills all workers; calls that are not done get no worker."""
        workers = list(self._workers)
        self._give_up(f"{self.setup.what}: closed")
        for worker in workers:
            self._remove(worker)
        await asyncio.to_thread(_reap, [worker.process for worker in workers])

    def dispatch_soon(self) -> None:
        """At the end of this turn of the event loop, so that what comes together is sent together."""
        if not self._dispatching:
            self._dispatching = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def came_up(self, worker: _Worker) -> None:
        """A worker has imported the function."""
        self._failed_starts = 0
        self.telemetry.down_since_s = None
        self._up.set()
        self.dispatch_soon()

    def lost(self, worker: _Worker, reason: str | None = None) -> None:
        """A worker's process ended, or its first answer was `reason` why it cannot work."""
        if worker not in self._workers:
            return  # killed
        calls = list(worker.calls.values())
        self._remove(worker)
        if not worker.ready:
            self._start_failed(reason or f"{self.setup.what}: its process ended while it imported {self.setup.module}")
            return
        # A plain function was at the oldest call; of async ones nobody knows, so each gets a worker to itself.
        guilty = calls[:1] if not self.is_async or len(calls) == 1 else []
        self._settle(guilty, DIED)
        others = [call for call in calls if call not in guilty]
        (self._again_alone if self.is_async else self._again)(others)
        self._idle_deaths = 0 if worker.answered else self._idle_deaths + 1
        self._replace(_back_off_s(self._idle_deaths))

    def _start_workers(self) -> None:
        missing = self._processes - len(self._workers) - self._replacing
        if missing <= 0 or self.failure is not None:
            return
        if self.telemetry.down_since_s is None and not any(worker.ready for worker in self._workers):
            self.telemetry.down_since_s = time.monotonic()
        for _ in range(missing):
            self._workers.add(_Worker(self))
        self._look_later()

    def _replace(self, after_s: float) -> None:
        self._replacing += 1

        def start() -> None:
            self._replacing -= 1
            self._start_workers()

        if after_s:
            asyncio.get_running_loop().call_later(after_s, start)
        else:
            start()

    def _start_failed(self, reason: str) -> None:
        self._failed_starts += 1
        logger.warning("%s", reason)
        # The first worker of all tells what is wrong with the function; later ones may have met a passing trouble.
        if self._failed_starts >= STARTS or not self._up.is_set():
            self._give_up(reason)
        else:
            self._replace(_back_off_s(self._failed_starts))

    def _give_up(self, reason: str) -> None:
        self.failure = self.failure or reason
        self._up.set()
        for worker in self._workers:
            self._settle(worker.calls.values(), BROKEN)
        self._settle(self._queue, BROKEN)
        self._queue.clear()
        if self._looking is not None:
            self._looking.cancel()

    def _dispatch(self) -> None:
        self._dispatching = False
        batches: dict[_Worker, list[msgspec.Raw]] = {}
        while self._queue:
            call = self._queue[0]
            worker = None if call.future.done() else self._free(call)
            if worker is None and not call.future.done():
                break
            self._queue.popleft()
            if worker is not None:
                worker.take(call)
                batches.setdefault(worker, []).append(call.encoded)
        for worker, calls in batches.items():
            worker.send(Calls(calls, []))
        if batches:
            self._look_later()

    def _free(self, call: _Waiting) -> _Worker | None:
        """The worker with the fewest calls, if it has room for this one."""
        fitting = [worker for worker in self._workers if worker.room_for(call)]
        return min(fitting, key=lambda worker: len(worker.calls), default=None)

    def _look_later(self) -> None:
        if self._looking is None and self.failure is None:
            pause_s = min(LOOK_S, self.setup.timeout_s / 4)
            self._looking = asyncio.get_running_loop().call_later(pause_s, self._look)

    def _look(self) -> None:
        """Kills workers whose calls are late."""
        self._looking = None
        now_s = time.monotonic()
        for worker in list(self._workers):
            late = worker.late(now_s, bool(self._queue))
            if late and worker.suspect:
                self._kill(worker, late)
            worker.suspect = bool(late)
        if any(worker.calls or not worker.ready for worker in self._workers):
            self._look_later()

    def _kill(self, worker: _Worker, late: list[_Waiting]) -> None:
        others = [call for call in worker.calls.values() if call not in late]
        self._remove(worker)
        if not worker.ready:
            self._start_failed(f"{self.setup.what}: importing {self.setup.module} took longer than {START_S:g} s")
            return
        # Of several async calls one may have kept the event loop from the others, so each gets a worker to itself.
        guilty = [call for call in late if call.alone or not self.is_async]
        self._settle(guilty, TIMEOUT)
        self._again(others)
        self._again_alone([call for call in late if call not in guilty])
        self._replace(0.0)

    def _remove(self, worker: _Worker) -> None:
        self._workers.discard(worker)
        worker.end()
        if self.telemetry.down_since_s is None and not any(one.ready for one in self._workers):
            self.telemetry.down_since_s = time.monotonic()

    def _again(self, calls: list[_Waiting]) -> None:
        self._queue.extendleft(reversed(calls))
        self.dispatch_soon()

    def _again_alone(self, calls: list[_Waiting]) -> None:
        """After the others, which would have to wait for a worker that does nothing else."""
        for call in calls:
            call.alone = True
        self._queue.extend(calls)
        self.dispatch_soon()

    def _settle(self, calls: Iterable[_Waiting], error: str) -> None:
        for call in calls:
            if not call.future.done():
                call.future.set_result(Answer(call.id, error=error))


class _Worker(asyncio.Protocol):
    """One process, as the server sees it."""

    def __init__(self, pool: WorkerPool) -> None:
        self.ready = False
        self.suspect = False
        """Whether it was late at the last look."""
        self.answered = 0
        self.calls: dict[int, _Waiting] = {}
        """In the order in which they were sent."""
        self._pool = pool
        self._frames = Frames()
        self._mean_s = AHEAD_S
        """How long a call takes lately."""
        self._since_s = time.monotonic()
        """When the process was started, or the oldest call of a plain function began."""
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = _start(theirs)
        self._connecting = asyncio.ensure_future(self._connect(ours))
        self.send(pool.setup)

    async def _connect(self, ours: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, sock=ours)
        except BaseException:
            ours.close()
            raise

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # of a socket it always is one, or uvloop's likeness
        self._transport.writelines(self._unsent)
        self._unsent = []

    def data_received(self, data: bytes) -> None:
        try:
            answers = [msgspec.msgpack.decode(message, type=Answer) for message in self._frames.feed(data)]
        except msgspec.MsgspecError:  # the function wrote to a descriptor that is none of its business
            self.end()
            return
        now_s = time.monotonic()
        for answer in answers:
            if answer.id:
                self._answered(answer, now_s)
            elif answer.error is not None:
                self._pool.lost(self, answer.error)
                return
            else:
                self.ready = True
                self._pool.came_up(self)
        self._pool.dispatch_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.lost(self)

    def room_for(self, call: _Waiting) -> bool:
        """Whether it should get this call now."""
        if not self.ready or (self.calls and (call.alone or next(iter(self.calls.values())).alone)):
            return False
        if self._pool.is_async:
            return len(self.calls) < ASYNC_CALLS
        return len(self.calls) < min(MAX_AHEAD, max(1, int(AHEAD_S / self._mean_s)))

    def take(self, call: _Waiting) -> None:
        """Counts a call as sent."""
        call.sent_s = time.monotonic()
        if not self.calls:
            self._since_s = call.sent_s
        self.calls[call.id] = call
        if self._pool.is_async:
            call.future.add_done_callback(lambda future: self._withdraw(call) if future.cancelled() else None)

    def send(self, message: msgspec.Struct) -> None:
        """Sends it now, or once there is a connection."""
        if self._transport is None:
            self._unsent.append(frame(message))
        else:
            self._transport.write(frame(message))

    def late(self, now_s: float, others_wait: bool) -> list[_Waiting]:
        """Calls that should have ended. Of a worker that is starting: something, when it should be up."""
        limit_s = self._pool.setup.timeout_s
        if not self.ready:
            return [_STARTING] if now_s - self._since_s > START_S else []
        if self._pool.is_async:
            return [call for call in self.calls.values() if now_s - call.sent_s > limit_s + UNYIELDING_S]
        oldest = next(iter(self.calls.values()), None)
        if oldest is None:
            return []
        if others_wait and oldest.future.cancelled():
            limit_s = min(limit_s, ABANDONED_S)
        return [oldest] if now_s - self._since_s > limit_s else []

    def end(self) -> None:
        """Kills the process, and what it started in its process group."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            threading.Thread(target=_reap, args=([self.process],), name="reap", daemon=True).start()
        if self._transport is not None:
            self._transport.abort()
        else:
            self._connecting.cancel()

    def _answered(self, answer: Answer, now_s: float) -> None:
        call = self.calls.pop(answer.id, None)
        if call is None:
            return
        self.answered += 1
        self._mean_s = 0.8 * self._mean_s + 0.2 * max(now_s - self._since_s, 1e-6)
        self._since_s = now_s
        if not call.future.done():
            call.future.set_result(answer)

    def _withdraw(self, call: _Waiting) -> None:
        if call.id in self.calls:
            self.send(Calls([], [call.id]))


_STARTING = _Waiting.__new__(_Waiting)
"""Stands for the import of the operator's module."""


def _start(theirs: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "bon_server.operator_code.worker", str(theirs.fileno()), str(os.getpid())],
        # It finds the modules where we did, and nowhere else.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        stdout=2,  # stdout belongs to our commands
        pass_fds=(theirs.fileno(),),
        start_new_session=True,  # so that it can be killed with all that it started
    )


def default_processes() -> int:
    """One for each CPU that this process may use, up to `MOST_PROCESSES`."""
    return min(MOST_PROCESSES, len(os.sched_getaffinity(0)))


def _back_off_s(times: int) -> float:
    return min(BACK_OFF_S * 2 ** (times - 1), MAX_BACK_OFF_S) if times else 0.0


def _reap(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)

"""Lifecycle: going down in order, and starts that must not succeed. As processes, with signals: see `elsewhere`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from bon.v1 import bon_pb2 as pb

from bon_server.core.errors import LogLocked
from bon_server.core.types import Completion
from bon_server.serving.lifecycle import server as server_module
from bon_server.serving.lifecycle.server import Server
from bon_server.serving.rpc.service import SERVICE
from tests.conftest import synthetic_config
from tests.fakes import PARTIAL, ScriptedPolicy, says
from tests.faults.asking import final
from tests.faults.case import NOTHING_LOGGED, OK, PUSHBACK, Case, Check, in_log, only_logged
from tests.faults.leaving import FOUR
from tests.faults.place import Kind, Place, Seen, see, see_start
from tests.serving.running import Running
from tests.waiting import SOON_S, until

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


class Gate:
    """Samples that wait until the case lets them go."""

    def __init__(self, place: Place) -> None:
        self._open = asyncio.Event()
        place.policy.script = self._sample

    async def _sample(self, index: int) -> Completion:
        await self._open.wait()
        return says(f"answer {index}")

    def open(self) -> None:
        """Lets all go."""
        self._open.set()


Draining = Callable[[Place], Awaitable[Seen]]


def running_call(streamed: bool) -> Draining:
    """A call that is under way when the server is told to end."""

    async def happens(place: Place) -> Seen:
        gate = Gate(place)
        call = place.stream() if streamed else place.generate()
        await until(lambda: place.policy.running == 4)
        draining = asyncio.create_task(place.server.drain(SOON_S))
        await until(lambda: place.server.attempts._refusal is not None)
        assert [await place.health(service) for service in ("", SERVICE)] == ["NOT_SERVING"] * 2
        assert not draining.done()
        gate.open()
        seen = await see(call)
        await draining
        return seen

    return happens


def new_call(make: Callable[[Place], Any]) -> Draining:
    """A call that comes while another one is still under way."""

    async def happens(place: Place) -> Seen:
        gate = Gate(place)
        call = place.generate(request_id="under-way")
        await until(lambda: place.policy.running == 4)
        draining = asyncio.create_task(place.server.drain(SOON_S))
        await until(lambda: place.server.attempts._refusal is not None)
        seen = await see(make(place))
        gate.open()
        await asyncio.gather(call, draining)
        return seen

    return happens


def grace_over(streamed: bool) -> Draining:
    """A call that is not done in time."""

    async def happens(place: Place) -> Seen:
        Gate(place)
        call = place.stream() if streamed else place.generate()
        seeing = asyncio.create_task(see(call))
        await until(lambda: place.policy.running == 4)
        await place.server.drain(0.05)
        return await seeing

    return happens


async def grace_over_in_the_queue(place: Place) -> Seen:
    Gate(place)
    first, second = place.generate(request_id="first"), place.generate()
    await until(lambda: place.admission.queued == 4)
    await place.server.drain(0.05)
    assert (await see(first)).ended is UNAVAILABLE
    assert len(place.policy.started) == 4
    return await see(second)


async def ready_answer(place: Place) -> Seen:
    """The answer is made while the server drains, and its port is closed right after."""
    gate = Gate(place)
    call = place.generate()
    await until(lambda: place.policy.running == 4)
    draining = asyncio.create_task(place.server.drain(SOON_S))
    gate.open()
    await draining
    await place.server.stop()
    return await see(call)


async def idle(place: Place) -> Seen:
    await place.generate()
    async with asyncio.timeout(SOON_S):
        await place.server.drain(60)
        await place.server.stop()
    return await see(place.generate(request_id="later"))


async def stopped_twice(place: Place) -> Seen:
    for _ in range(2):
        await place.server.drain(0)
        await place.server.stop()
    return await see(place.generate())


async def while_warming_up(place: Place) -> Seen:
    """Another server, whose policy takes its time to load; its port is known beforehand."""
    loading, loaded = asyncio.Event(), asyncio.Event()

    async def load(config: object) -> ScriptedPolicy:
        loading.set()
        await loaded.wait()
        return ScriptedPolicy()

    place.patch.setattr(server_module, "start_policy", load)
    port = _free_port()
    config = synthetic_config(place.log.parent / "warming", **{"listen.port": port})
    starting = asyncio.create_task(Server.start(config))
    await loading.wait()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        caller = Running(place.server, channel, place.log)
        seen = await see(caller.ask())
        assert not starting.done()
        loaded.set()
        server = await starting
    options = (("grpc.use_local_subchannel_pool", 1),)  # or the connection that failed would be waited for
    async with grpc.aio.insecure_channel(server.address, options=options) as channel:
        assert (await Running(server, channel, place.log).ask()).n_scored == 4, "and then it answers"
    await server.drain(0)
    await server.stop()
    return seen


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port


async def same_log(place: Place) -> Seen:
    return await see_start(place.log)


def _all_logged(place: Place, seen: Seen) -> None:
    assert final(seen).n_scored == 4


def _cut(place: Place, seen: Seen) -> None:
    assert [candidate.text for candidate in place.row().candidates] == [PARTIAL] * 4


def _only(*ids: str) -> Check:
    return only_logged("only what was under way is in the log", *ids)


ANSWERED = Check("answered", _all_logged)
IN_FULL = in_log("ok", *["scored"] * 4)
STOPPED = in_log("failed", *["cancelled"] * 4, error="Unavailable")
ENDS = ("the server is shutting down",)


def _ends(
    name: str, happens: Draining, ends: grpc.StatusCode, *checks: Check, variant: str = "", says: Any = ()
) -> Case:
    settings = FOUR if "queue" in name else {}
    kind = Kind(settings)
    return Case(
        name=name, variant=variant, happens=happens, ends=ends, checks=checks, says=says, kind=kind, ends_server=True
    )


SCORE = pb.ScoreRequest(text="question", completions=["x"])

CASES = [
    _ends("SIGTERM while idle: a later call", idle, UNAVAILABLE),
    _ends("SIGTERM with work: a running call", running_call(False), OK, ANSWERED, IN_FULL, variant="Generate"),
    _ends("SIGTERM with work: a running call", running_call(True), OK, ANSWERED, IN_FULL, variant="GenerateStream"),
    *[
        _ends(
            "SIGTERM with work: a new call",
            new_call(make),
            UNAVAILABLE,
            PUSHBACK,
            _only("under-way"),
            variant=variant,
            says=ENDS,
        )
        for variant, make in (
            ("Generate", lambda place: place.generate()),
            ("GenerateStream", lambda place: place.stream()),
            ("Score", lambda place: place.stub.Score(SCORE)),
        )
    ],
    _ends("SIGTERM with work: an answer ready at the last moment", ready_answer, OK, ANSWERED, IN_FULL),
    *[
        _ends(
            "grace over: a running call",
            grace_over(streamed),
            UNAVAILABLE,
            PUSHBACK,
            STOPPED,
            Check("with the texts as far as they came", _cut),
            variant="GenerateStream" if streamed else "Generate",
            says=ENDS,
        )
        for streamed in (False, True)
    ],
    _ends("grace over: in the queue", grace_over_in_the_queue, UNAVAILABLE, PUSHBACK, _only("first"), says=ENDS),
    _ends("stopped twice", stopped_twice, UNAVAILABLE),
    Case(name="RPC while warming up", happens=while_warming_up, ends=UNAVAILABLE, checks=(NOTHING_LOGGED,)),
    Case(
        name="second server on the same log folder",
        happens=same_log,
        ends=LogLocked,
        says=("is being written by another process: pid ",),
    ),
]

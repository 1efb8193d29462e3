"""What a call leaves to the garbage collector, which looks seldom: nothing of what was asked or answered."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from bon.v1 import bon_pb2 as pb
from google.protobuf.message import Message

from bon_server.core.errors import SamplingFailed
from bon_server.core.types import Candidate, Completion, Request
from tests.fakes import ScriptedPolicy
from tests.serving.conftest import Run
from tests.serving.running import Running, question
from tests.waiting import until

LONG_BYTES = 20_000
"""A text of this length is within the context of the synthetic policy; more of it is not."""


async def answered(running: Running) -> None:
    await running.ask(text="q" * LONG_BYTES)


async def scored(running: Running) -> None:
    await running.stub.Score(pb.ScoreRequest(text="q", completions=["a" * LONG_BYTES, "b"]))


async def refused(running: Running) -> None:
    await running.refused(text="q" * 1_000_000)


async def unsampled(running: Running) -> None:
    await running.refused(text="q" * LONG_BYTES)


async def refused_stream(running: Running) -> None:
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        async for _ in running.stub.GenerateStream(pb.GenerateStreamRequest(request=question(text="q" * 1_000_000))):
            pass


async def streamed(running: Running) -> None:
    async for _ in running.stub.GenerateStream(pb.GenerateStreamRequest(request=question(text="q" * LONG_BYTES))):
        pass


async def left(running: Running) -> None:
    call = running.stub.Generate(question(text="q" * LONG_BYTES, sampling=pb.SamplingParams(max_tokens=1_000)))
    await until(lambda: running.server.attempts.running == 1)
    call.cancel()
    await running.at_rest()


@contextmanager
def garbage() -> Iterator[list[Any]]:
    """What only the garbage collector frees of what is made in the block; there at its end."""
    found: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def is_content(one: Any) -> bool:
    """Or holds it: texts are no garbage themselves."""
    held = [one, *one.f_locals.values()] if isinstance(one, FrameType) else [one, *gc.get_referents(one)]
    return any(
        isinstance(each, Message | Request | Candidate | Completion)
        or (isinstance(each, str | bytes) and len(each) >= LONG_BYTES)
        for each in held
    )


async def sampling_fails(index: int) -> Completion:
    raise SamplingFailed("engine error")


CALLS: list[tuple[Callable[[Running], Awaitable[None]], str | ScriptedPolicy]] = [
    (answered, "synthetic"),
    (scored, "synthetic"),
    (streamed, "synthetic"),
    (refused, "synthetic"),
    (refused_stream, "synthetic"),
    (unsampled, ScriptedPolicy(sampling_fails)),
    (left, "synthetic:tokens_per_s=10"),
]


@pytest.mark.parametrize(("call", "policy"), CALLS, ids=lambda each: getattr(each, "__name__", None))
async def test_nothing_that_was_said_waits_for_the_garbage_collector(
    run: Run, call: Callable[[Running], Awaitable[None]], policy: str | ScriptedPolicy
) -> None:
    running = await (run(policy) if isinstance(policy, ScriptedPolicy) else run(settings={"policy.model": policy}))
    await call(running)
    await running.at_rest()
    with garbage() as found:
        for _ in range(3):  # of the last one something may still be under way
            await call(running)
        await running.at_rest()
    said = [type(one) for one in found if is_content(one)]
    assert said == []

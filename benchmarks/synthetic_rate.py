"""What the server itself costs: models that take no time, against a bare gRPC echo of the same bytes.

Both servers are processes of their own, the client is this process, and passes alternate. Requests and responses are
bytes for the client in both cases, so what it costs is the same too.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from bon.v1 import bon_pb2 as pb

from benchmarks import echo_process
from benchmarks.child_process import free_port, running
from benchmarks.server_stack import bon_serve

GENERATE = "/bon.v1.BestOfNService/Generate"
N = 16
TOKENS = 60
SPEC = "synthetic:tokens=1000000"
"""Far longer than `max_tokens`, so that every candidate has exactly `TOKENS`."""
CONCURRENCY = 64
WARM_UP_S = 1.0
CHANNEL_OPTIONS = [("grpc.max_receive_message_length", 64 << 20)]


@dataclass(frozen=True)
class SyntheticRates:
    """(repetitions,) calls a second, alternating."""

    ours: list[float]
    echo: list[float]
    request_bytes: int
    response_bytes: int


class _Target:
    """A method of a server, called with bytes."""

    def __init__(self, channel: grpc.aio.Channel, method: str) -> None:
        self.call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)

    async def rate(self, request: bytes, seconds: float) -> float:
        """Calls a second with `CONCURRENCY` in flight."""
        began = time.perf_counter()
        counts = [0] * CONCURRENCY

        async def caller(place: int) -> None:
            while time.perf_counter() - began < seconds:
                await self.call(request)
                counts[place] += 1

        async with asyncio.TaskGroup() as callers:
            for place in range(CONCURRENCY):
                callers.create_task(caller(place))
        return sum(counts) / (time.perf_counter() - began)


async def synthetic_rates(folder: Path, repetitions: int, seconds: float) -> SyntheticRates:
    """Alternates passes of `seconds` between both servers. `folder` is for log and output."""
    request = _request()
    arguments = ["--policy", SPEC, "--reward", "synthetic", "--log", str(folder / "log")]
    async with (
        bon_serve(arguments, folder) as address,
        grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel,
    ):
        ours = _Target(channel, GENERATE)
        response = await ours.call(request)
        async with _echo(response, folder) as echo:
            return await _alternate(ours, echo, request, len(response), repetitions, seconds)


async def _alternate(
    ours: _Target, echo: _Target, request: bytes, response_bytes: int, repetitions: int, seconds: float
) -> SyntheticRates:
    rates = SyntheticRates([], [], len(request), response_bytes)
    for target in (ours, echo):
        await target.rate(request, WARM_UP_S)
    for _ in range(repetitions):
        rates.ours.append(await ours.rate(request, seconds))
        rates.echo.append(await echo.rate(request, seconds))
    return rates


def _request() -> bytes:
    """Without a `request_id`, so that the same bytes are a new request each time."""
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="What is 17 + 25? Answer with a number.")])
    sampling = pb.SamplingParams(temperature=0.8, max_tokens=TOKENS)
    return pb.GenerateRequest(chat=chat, n=N, sampling=sampling, view=pb.CANDIDATE_VIEW_ALL).SerializeToString()


@asynccontextmanager
async def _echo(response: bytes, folder: Path) -> AsyncIterator[_Target]:
    port, response_file = free_port(), folder / "response.bin"
    response_file.write_bytes(response)
    command = [sys.executable, "-m", echo_process.__name__, str(port), str(response_file)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL_OPTIONS) as channel:

        async def answers() -> bool:
            return channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY

        async with running(command, folder / "echo.log", answers):
            yield _Target(channel, echo_process.METHOD)

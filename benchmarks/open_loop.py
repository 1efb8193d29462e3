"""Open-loop load: requests are sent when they are due, whether or not earlier ones were answered."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import bon
import grpc
from bon.v1 import bon_pb2 as pb

TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Ended:
    """One request. Times in seconds since the load began."""

    due_s: float
    """When it was to be sent; latency counts from here, so that a late client hides nothing."""
    ended_s: float
    code: grpc.StatusCode
    waited_s: float
    """For a permit; 0 when there was no answer."""

    @property
    def seconds(self) -> float:
        """Its latency."""
        return self.ended_s - self.due_s


Ask = Callable[[int], Awaitable[pb.GenerateResponse]]
"""Sends the request of this number; raises AioRpcError."""


async def open_loop(ask: Ask, per_s: float, seconds: float, seed: int) -> list[Ended]:
    """Sends a Poisson stream of `per_s` requests a second for so many seconds, then waits for all of them."""
    dice = random.Random(seed)
    began = time.perf_counter()
    asked: list[asyncio.Task[Ended]] = []
    due_s = dice.expovariate(per_s)
    while due_s < seconds:
        await asyncio.sleep(max(0.0, due_s - (time.perf_counter() - began)))
        asked.append(asyncio.create_task(_ended(ask, len(asked), due_s, began)))
        due_s += dice.expovariate(per_s)
    return list(await asyncio.gather(*asked))


async def closed_loop(ask: Ask, concurrency: int, seconds: float) -> list[Ended]:
    """Keeps so many requests in flight for so many seconds, then waits for the last ones."""
    began = time.perf_counter()
    ended: list[Ended] = []

    async def caller(place: int) -> None:
        while (now := time.perf_counter() - began) < seconds:
            ended.append(await _ended(ask, place, now, began))

    await asyncio.gather(*(caller(place) for place in range(concurrency)))
    return ended


async def _ended(ask: Ask, number: int, due_s: float, began: float) -> Ended:
    code, waited_s = grpc.StatusCode.OK, 0.0
    try:
        answer = await ask(number)
        waited_s = answer.timings.queue_ns / 1e9
    except grpc.aio.AioRpcError as error:
        code = error.code()
    return Ended(due_s, time.perf_counter() - began, code, waited_s)


def rate(ended: Sequence[Ended], from_s: float, to_s: float) -> float:
    """Answers a second in this part of the load."""
    return sum(one.code is grpc.StatusCode.OK and from_s <= one.ended_s < to_s for one in ended) / (to_s - from_s)


def latencies(ended: Sequence[Ended], code: grpc.StatusCode, from_s: float = 0.0) -> dict[str, Any]:
    """Of the requests due after `from_s` that ended with this code: how many, their latency and wait in seconds."""
    counted = [one for one in ended if one.code is code and one.due_s >= from_s]
    seconds, waited = sorted(one.seconds for one in counted), [one.waited_s for one in counted]
    if not seconds:
        return {"requests": 0}
    return {
        "requests": len(seconds),
        "p50_s": round(quantile(seconds, 0.5), 4),
        "p99_s": round(quantile(seconds, 0.99), 4),
        "max_s": round(seconds[-1], 4),
        "waited_p99_s": round(quantile(sorted(waited), 0.99), 4),
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the ordered values do not exceed."""
    return ordered[ceil(share * len(ordered)) - 1]


def client(address: str) -> bon.AsyncClient:
    """A client with a connection of its own, as another program would have, that takes no for an answer."""
    return bon.AsyncClient(address, attempts=1, timeout=TIMEOUT_S, options={"grpc.use_local_subchannel_pool": 1})


def asker(clients: Sequence[bon.AsyncClient], make: Callable[[], pb.GenerateRequest]) -> Ask:
    """Spreads requests over the clients."""

    async def ask(number: int) -> pb.GenerateResponse:
        return await clients[number % len(clients)].send(make())

    return ask

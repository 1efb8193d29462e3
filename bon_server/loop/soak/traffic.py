"""Many callers at once, each on a connection of its own that it now and then makes anew."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import bon

from bon_server.loop.soak.calls import CALLS, CANCELS, Caller
from bon_server.loop.soak.ledger import Ledger

CALLS_A_CONNECTION = 100
UNEXPECTED = "unexpected"
"""What calls are counted as that end with no status; no promise is made of them, so each fails the run."""


@dataclass(frozen=True)
class Mix:
    """What comes at the server."""

    target: str
    security: bon.Security
    concurrency: int
    cancel_share: float
    """Of all calls, 0 to 1."""
    seed: int


async def traffic(mix: Mix, ledger: Ledger, seconds: float, goes_on: Callable[[], bool] = lambda: True) -> None:
    """Sends it for so long, or while `goes_on`, then waits for what is under way and closes all connections."""
    until_s = time.monotonic() + seconds
    async with asyncio.TaskGroup() as callers:
        for number in range(mix.concurrency):
            dice = random.Random(f"{mix.seed} {number} {seconds}")
            callers.create_task(_caller(mix, dice, ledger, lambda: time.monotonic() < until_s and goes_on()))
    gc.collect()  # or connections of closed channels stay open, in cycles with calls that were cancelled (grpc#42125)


async def _caller(mix: Mix, dice: random.Random, ledger: Ledger, goes_on: Callable[[], bool]) -> None:
    caller: Caller | None = None
    while goes_on():
        async with _client(mix) as client:
            caller = caller or Caller(client, dice, ledger)
            caller.client = client
            for _ in range(CALLS_A_CONNECTION):
                if goes_on():
                    await _call(caller, mix.cancel_share)


async def _call(caller: Caller, cancel_share: float) -> None:
    kinds = CANCELS if caller.dice.random() < cancel_share else CALLS
    kind = caller.dice.choices(kinds, [kind.share for kind in kinds])[0]
    try:
        await kind.do(caller)
    except Exception as error:  # noqa: BLE001 -- what is no status is a finding, and no reason to end a long run
        caller.ledger.codes[UNEXPECTED][type(error).__name__] += 1


def _client(mix: Mix) -> bon.AsyncClient:
    """Channels to one address share a connection unless told otherwise."""
    return bon.AsyncClient(mix.target, attempts=1, options={"grpc.use_local_subchannel_pool": 1}, **mix.security)

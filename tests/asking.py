"""`best_of_n` asked once, in a loop of its own, with a policy and a reward model that do as told."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from bon_server.core.best_of_n import Answer, Stop, best_of_n
from bon_server.core.errors import (
    RequestError,
)
from bon_server.core.types import (
    Budget,
    Candidate,
    CandidateStatus,
    Completion,
    Request,
    Score,
)
from tests.fakes import ScriptedPolicy, ScriptedReward, a_request, says, scored
from tests.waiting import SOON_S, until


def ask(
    request: Request,
    policy: ScriptedPolicy,
    reward_model: ScriptedReward,
    stop_when: Callable[[], Awaitable[RequestError]] | None = None,
    ended: list[Candidate] | None = None,
) -> Answer:
    """Runs `best_of_n` in a loop of its own and checks that it leaves nothing behind."""

    async def run() -> Answer:
        on_end = (lambda candidate: None) if ended is None else ended.append
        stop: Stop = asyncio.get_running_loop().create_future()
        stopping = asyncio.create_task(complete(stop, stop_when))
        async with nothing_left_behind(policy, reward_model):
            answer = await asyncio.wait_for(best_of_n(request, policy, reward_model, stop, on_end), SOON_S)
        stopping.cancel()
        return answer

    return asyncio.run(run())


async def complete(stop: Stop, when: Callable[[], Awaitable[RequestError]] | None) -> None:
    if when is not None:
        stop.set_exception(await when())
        stop.exception()


@asynccontextmanager
async def nothing_left_behind(policy: ScriptedPolicy, reward_model: ScriptedReward) -> AsyncIterator[None]:
    """At the end no task is pending that was not there before, and neither model is at work."""
    loop, before, unhandled = asyncio.get_running_loop(), asyncio.all_tasks(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    yield
    assert (policy.running, reward_model.running) == (0, 0)
    await asyncio.sleep(0)  # fakes cancel their own helpers in the same moment
    await asyncio.sleep(0)
    assert asyncio.all_tasks() - before == set()
    assert unhandled == []


def after_ticks(ticks: Sequence[int], text: Callable[[int], str]) -> Callable[[int], Coroutine[Any, Any, Completion]]:
    """Candidate i says `text(i)` after `ticks[i]` turns of the event loop."""

    async def script(index: int) -> Completion:
        for _ in range(ticks[index]):
            await asyncio.sleep(0)
        return says(text(index))

    return script


def rewards_of(values: Sequence[float | None]) -> Callable[[str], Coroutine[Any, Any, Score]]:
    """Rewards by the number in the text; what is not finite is marked, as reward models must; None fails."""

    async def script(text: str) -> Score:
        value = values[int(text)]
        if value is None:
            return Score(CandidateStatus.FAILED, error="scripted")
        return scored(value) if math.isfinite(value) else Score(CandidateStatus.NON_FINITE)

    return script


def wait_until(condition: Callable[[], bool], error: RequestError) -> Callable[[], Awaitable[RequestError]]:
    """Stops with `error` once the condition holds."""

    async def wait() -> RequestError:
        await until(condition)
        return error

    return wait


def statuses(answer: Answer) -> list[str]:
    """In index order."""
    return [candidate.status.value for candidate in answer.candidates]


def on_a_budget(n: int, **budget: Any) -> Request:
    """A question with a budget."""
    return replace(a_request(n), budget=Budget(**budget))

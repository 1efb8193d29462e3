"""A question to models that do as told, asked as a call or as a stream, by a caller who may leave or be in a hurry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from bon_server.core.types import Completion, Score
from tests.fakes import says, scored
from tests.faults.case import Case, Check
from tests.faults.place import Kind, Place, Seen, see
from tests.waiting import forever, until

MARGIN_MS = 1500
DEADLINE_S = 2.0
"""Wide apart, because a busy machine takes its time to commit and answer: candidates stop after half a second."""


@dataclass(frozen=True)
class Asks:
    """What happens at each stage; unset: it goes on at once."""

    encode: Callable[[], Awaitable[None]] | None = None
    sample: Callable[[int], Awaitable[Completion]] | None = None
    score: Callable[[str], Awaitable[Score]] | None = None
    leaves_when: Callable[[Place], bool] | None = None
    """The caller leaves then; None: it waits for the answer."""
    deadline_s: float | None = None
    obeys_abort: bool = True
    """Whether the engine ends samples when asked to."""
    slow_disk: bool = False
    """Nothing can be committed until the call has ended."""
    n: int = 4
    streamed: bool = False

    async def __call__(self, place: Place) -> Seen:
        self.set_up(place)
        with place.slow_disk() if self.slow_disk else nullcontext():
            ask = place.stream if self.streamed else place.generate
            call = ask(self.deadline_s, n=self.n)
            seeing = asyncio.create_task(see(call))
            if self.leaves_when is not None:
                leaves_when = self.leaves_when
                await until(lambda: leaves_when(place))
                call.cancel()
            return await seeing

    def set_up(self, place: Place) -> None:
        """Tells the models."""
        place.policy.prepare = self.encode
        place.policy.script = self.sample or place.policy.script
        place.policy.obeys_abort = self.obeys_abort
        place.reward_model.script = self.score or place.reward_model.script


def both(
    name: str, asks: Asks, ends: Any, *checks: Check, says: tuple[str, ...] = (), kind: Callable[[], Kind] | None = None
) -> Iterator[Case]:
    """The same by Generate and by GenerateStream. kind: makes a server for each; None: they share one."""
    for streamed in (False, True):
        case = Case(
            name=name,
            variant="GenerateStream" if streamed else "Generate",
            happens=replace(asks, streamed=streamed),
            ends=ends,
            says=says,
            checks=checks,
        )
        yield case if kind is None else replace(case, kind=kind())


def final(seen: Seen) -> Any:
    """The answer, which is the last event of a stream."""
    return seen.answer[-1].final if isinstance(seen.answer, list) else seen.answer


# What stages do


async def hang(_: object) -> Completion:
    """A sample that never ends."""
    await forever()


async def hang_scoring(_: str) -> Score:
    """A score that never comes."""
    await forever()


async def first_two_answer(index: int) -> Completion:
    """The others are sampled for ever."""
    if index > 1:
        await forever()
    return says("answer " + "!" * index)


async def only_first_is_scored(text: str) -> Score:
    """The others are scored for ever."""
    if text not in ("answer 0", "answer "):
        await forever()
    return scored(1.0)


def failing(error: BaseException) -> Callable[..., Any]:
    """A stage that fails."""

    async def fail(*_: object) -> Any:
        raise error

    return fail


# How far the server has come


def tokenises(place: Place) -> bool:
    """It looks at the prompt."""
    return place.server._service.running == 1


def samples(count: int) -> Callable[[Place], bool]:
    """So many candidates are being sampled, and all others are scored."""

    def reached(place: Place) -> bool:
        return place.policy.running == count and place.reward_model.calls.total() == 4 - count

    return reached


def scores(count: int, sampled: int = 0) -> Callable[[Place], bool]:
    """So many candidates are being scored, and so many sampled."""
    return lambda place: (place.reward_model.running, place.policy.running) == (count, sampled)


def all_scored(place: Place) -> bool:
    """All candidates have their scores, which take no time."""
    return place.reward_model.calls.total() == 4

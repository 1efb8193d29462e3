"""All stacks loaded beside each other, one asked at a time: engine, server and HTTP stack in turn, again and again."""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison import Passes
from benchmarks.engine_stack import bare_engine
from benchmarks.http_stack import HttpStack, http_stack
from benchmarks.load import Pass, Stack, drive
from benchmarks.machine import Quiet, quiet
from benchmarks.models import Models
from benchmarks.server_stack import ServerStack, whole_server
from benchmarks.sizes import Sizes
from benchmarks.workload import Question, Questions, Sampling

ENGINE_UP_TO = 8
"""Questions in flight, beyond which the bare engine is not asked: those show what a full engine answers a second."""


@dataclass(frozen=True)
class SideBySide:
    """What was measured."""

    concurrencies: tuple[int, ...]
    passes: Passes
    before: Quiet
    """All stacks loaded and warm, none asked."""
    after: Quiet
    reward_difference: float | None
    """Largest difference of a text's reward between server and reward process; None: they did not both run."""


async def measure(models: Models, sampling: Sampling, sizes: Sizes, parts: list[str], folder: Path) -> SideBySide:
    """Starts the stacks in `parts` (`engine`, `server`, `http`), measures, ends them. `folder` is for their output."""
    questions = Questions(sizes.all_questions)
    async with AsyncExitStack() as started:
        stacks = await _start(started, models, sampling, parts, folder)
        await _warm_up(stacks, questions.take(max(sizes.questions)))
        before = await _quiet()
        passes = await _passes(stacks, questions, sizes)
        after = await _quiet()
        difference = await _reward_difference(stacks, questions)
    return SideBySide(tuple(sizes.questions), passes, before, after, difference)


async def _start(
    started: AsyncExitStack, models: Models, sampling: Sampling, parts: list[str], folder: Path
) -> list[Stack]:
    """One after the other: engines that load at once misjudge the memory that is free."""
    stacks: list[Stack] = []
    if "engine" in parts:
        _say("starting the bare engine")
        stacks += await started.enter_async_context(bare_engine(models, sampling))
    if "server" in parts:
        _say("starting bon serve")
        stacks += await started.enter_async_context(whole_server(models, sampling, folder))
    if "http" in parts:
        _say("starting vllm serve and the reward process")
        stacks.append(await started.enter_async_context(http_stack(models, sampling, folder)))
    return stacks


async def _warm_up(stacks: list[Stack], asked: Sequence[Question]) -> None:
    """The first requests of a shape are slow, and threads and connections are made on demand."""
    for stack in stacks:
        await drive(stack, asked, len(asked))


async def _passes(stacks: list[Stack], questions: Questions, sizes: Sizes) -> Passes:
    passes: defaultdict[tuple[str, int], list[Pass]] = defaultdict(list)
    for repetition in range(sizes.repetitions):
        turn = repetition % len(stacks)  # another one goes first each time: drift of the machine favours none
        for concurrency, count in sizes.questions.items():
            asked = questions.take(count)
            for stack in (*stacks[turn:], *stacks[:turn]):
                if concurrency > ENGINE_UP_TO and stack.name.startswith("engine"):
                    continue
                one = await drive(stack, asked, concurrency)
                passes[stack.name, concurrency].append(one)
                _say(
                    f"{repetition + 1}/{sizes.repetitions} {stack.name} at {concurrency}: {one.seconds:.1f} s, "
                    f"{one.answers / one.seconds:.3f} answers/s, {one.tokens / one.seconds:.0f} tokens/s"
                )
    return passes


async def _quiet() -> Quiet:
    watched = await asyncio.to_thread(quiet)
    _say(f"nothing asked: {watched.ours_percent} % of a core used by the stacks, {watched.others_percent} % by others")
    return watched


async def _reward_difference(stacks: list[Stack], questions: Questions) -> float | None:
    server = next((stack for stack in stacks if isinstance(stack, ServerStack)), None)
    http = next((stack for stack in stacks if isinstance(stack, HttpStack)), None)
    if server is None or http is None:
        return None
    (question,) = questions.take(1)
    texts, ours = await server.scored(question)
    theirs = await http.rewards(question, texts)
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)  # noqa: T201

"""Closed-loop load: a fixed list of questions, so many in flight, timed as a whole and one by one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from benchmarks.workload import Question


class Stack(Protocol):
    """Something that is asked questions."""

    @property
    def name(self) -> str:
        """Under which it is reported."""

    async def prepare(self) -> None:
        """Called before each pass, outside the measured time."""

    async def ask(self, question: Question) -> int:
        """Answers once and returns how many tokens were sampled for it."""


@dataclass(frozen=True)
class Pass:
    """One stack's way through one list of questions."""

    seconds: float
    """From the first question sent to the last answer received."""
    tokens: int
    """Sampled, over all candidates of all questions."""
    request_seconds: tuple[float, ...]
    """(questions,) each from sending to answer."""

    @property
    def answers(self) -> int:
        """Questions answered: all of them, or the pass would have raised."""
        return len(self.request_seconds)

    @property
    def median_request_s(self) -> float:
        """The middle request's time."""
        return median(self.request_seconds)


async def drive(stack: Stack, questions: Sequence[Question], concurrency: int) -> Pass:
    """Asks all questions in order with `concurrency` in flight. An error of the stack ends the benchmark."""
    await stack.prepare()
    waiting = iter(questions)
    tokens: list[int] = []
    request_seconds: list[float] = []

    async def caller() -> None:
        for question in waiting:
            began = time.perf_counter()
            tokens.append(await stack.ask(question))
            request_seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as callers:
        for _ in range(concurrency):
            callers.create_task(caller())
    return Pass(time.perf_counter() - began, sum(tokens), tuple(request_seconds))

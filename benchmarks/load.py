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

    async def ask(self, question: Question) -> Asked:
        """Answers once."""


@dataclass(frozen=True)
class Asked:
    """What came of one question."""

    tokens: int
    """Sampled for it, over all candidates."""
    reward: float | None = None
    """Of the answer; None: the stack does not score."""


@dataclass(frozen=True)
class Pass:
    """One stack's way through one list of questions."""

    seconds: float
    """From the first question sent to the last answer received."""
    tokens: int
    """Sampled, over all candidates of all questions."""
    rewards: tuple[float | None, ...]
    """(questions,) of the answers."""
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
    waiting = iter(enumerate(questions))
    answers: dict[int, Asked] = {}
    request_seconds: list[float] = []

    async def caller() -> None:
        for index, question in waiting:
            began = time.perf_counter()
            answers[index] = await stack.ask(question)
            request_seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as callers:
        for _ in range(concurrency):
            callers.create_task(caller())
    seconds = time.perf_counter() - began
    in_order = [answers[index] for index in range(len(questions))]
    rewards = tuple(answer.reward for answer in in_order)
    return Pass(seconds, sum(answer.tokens for answer in in_order), rewards, tuple(request_seconds))

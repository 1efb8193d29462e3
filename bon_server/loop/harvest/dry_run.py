"""What a harvest would cost, in tokens and in time, from a measured sample of its prompts.

All lines are read, and checked as a harvest would check them. Some of them, drawn at random, are asked under fresh ids
with nothing logged; so a dry run leaves nothing behind, and a second one measures anew.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import bon
import numpy as np
from bon.v1 import bon_pb2 as pb
from scipy.special import stdtrit

from bon_server.loop.harvest.lines import BadPromptLine, Occurrences, Run, line_request
from bon_server.loop.harvest.loop import Watcher, harvest
from bon_server.loop.harvest.prompts import PromptLine, find_prompts

SAMPLE = 8
PROBLEMS = 10
"""How many lines that are not as they should be are named."""


@dataclass(slots=True)
class Counted:
    """What reading all lines tells."""

    good: int = 0
    bad: int = 0
    characters: int = 0
    """Of all prompts that are good."""
    problems: list[dict[str, Any]] = field(default_factory=list)
    """`line` and `reason` of the first `PROBLEMS` bad lines."""
    sample: list[tuple[PromptLine, int]] = field(default_factory=list)
    """Good lines drawn at random without replacement, with the characters of their prompts."""


@dataclass(slots=True)
class Measured:
    """What became of the sample."""

    characters: list[int] = field(default_factory=list)
    answers: list[pb.GenerateResponse] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)


def dry_run(
    file: Path,
    run: Run,
    *,
    target: str,
    security: bon.Security | None = None,
    concurrency: int,
    sample: int | None = None,
    seed: int = 0,
    patience_s: float = 300.0,
) -> dict[str, Any]:
    """The document of `bon harvest --dry-run --json`.

    sample: prompts to ask; None: `SAMPLE`, or `concurrency` where that is more, so that the server is as busy as it
    will be. seed: of the draw. An estimate is {"estimate", "low", "high"} with a 95 % interval by Student's t over the
    sample; its bounds are None for a sample of one. Raises OSError, and `ConfigError` for what is no table of prompts.
    """
    counted = count(file, run, max(SAMPLE, concurrency) if sample is None else sample, seed)
    measured, stopped = asyncio.run(_measure(counted, run, target, security or {}, concurrency, patience_s))
    return {
        "dry_run": True,
        "lines": counted.good + counted.bad,
        "bad_lines": counted.bad,
        "problems": counted.problems,
        "sample": {
            "requests": len(counted.sample),
            "answered": len(measured.answers),
            "failures": measured.failures,
            "seed": seed,
            "stopped": stopped,
        },
        **(_estimates(counted, measured, concurrency) if measured.answers else {}),
    }


def count(file: Path, run: Run, sample: int, seed: int) -> Counted:
    """Reads all lines and draws `sample` of the good ones (Vitter 1985, "Random sampling with a reservoir", R)."""
    dice, counted = random.Random(seed), Counted()
    with closing(Occurrences()) as occurrences:
        for line in find_prompts(file).lines(run.columns):
            try:
                characters = _characters(line_request(line.content, run, occurrences))
            except BadPromptLine as error:
                counted.bad += 1
                if len(counted.problems) < PROBLEMS:
                    counted.problems.append({"line": line.number, "reason": str(error)})
                continue
            counted.good += 1
            counted.characters += characters
            if len(counted.sample) < sample:
                counted.sample.append((line, characters))
            elif (place := dice.randrange(counted.good)) < sample:
                counted.sample[place] = (line, characters)
    return counted


def total(values: Sequence[float], lines: int) -> dict[str, float | None]:
    """The sum over `lines` lines, of which `values` are a random sample."""
    return _interval(
        lines * float(np.mean(values)), lines * float(np.std(values, ddof=min(1, len(values) - 1))), values
    )


def total_by_ratio(values: Sequence[float], sizes: Sequence[float], lines: int, size: float) -> dict[str, float | None]:
    """The sum over `lines` lines of what goes with their sizes, whose sum is known (Cochran 1977, chapter 6)."""
    ratio = sum(values) / max(1, sum(sizes))
    rest = np.asarray(values) - ratio * np.asarray(sizes)
    unseen = math.sqrt(1 - len(values) / lines)
    deviation = math.sqrt(float(rest @ rest) / max(1, len(values) - 1))
    return _interval(ratio * size, unseen * lines * deviation, values)


async def _measure(
    counted: Counted, run: Run, target: str, security: bon.Security, concurrency: int, patience_s: float
) -> tuple[Measured, str | None]:
    characters = {line.number: size for line, size in counted.sample}
    measured = Measured()

    def keep(line: PromptLine, answer: pb.GenerateResponse) -> None:
        measured.answers.append(answer)
        measured.characters.append(characters[line.number])

    def fail(line: PromptLine, reason: str) -> None:
        measured.failures.append({"line": line.number, "reason": reason})

    async with bon.AsyncClient(target, attempts=1, **security) as client:
        result = await harvest(
            iter([line for line, _ in counted.sample]),
            client,
            replace(run, trial=True),
            concurrency=concurrency,
            patience_s=patience_s,
            watcher=Watcher(keep, fail),
        )
    return measured, result.stopped


def _estimates(counted: Counted, measured: Measured, concurrency: int) -> dict[str, Any]:
    """Time: what a request takes while the others run beside it, over how many run at a time."""

    def of(number: Callable[[pb.GenerateResponse], float]) -> list[float]:
        return [number(answer) for answer in measured.answers]

    lines, beside = counted.good, min(concurrency, counted.good)
    return {
        "candidates": lines * max(answer.n_requested for answer in measured.answers),
        "prompt_tokens": total_by_ratio(
            of(lambda answer: answer.usage.prompt_tokens), measured.characters, lines, counted.characters
        ),
        "completion_tokens": total(of(lambda answer: answer.usage.completion_tokens), lines),
        "reward_model_tokens": total(of(lambda answer: answer.usage.reward_model_tokens), lines),
        "seconds": total(of(lambda answer: answer.timings.total_ns / 1e9 / beside), lines),
    }


def _interval(estimate: float, deviation: float, values: Sequence[float]) -> dict[str, float | None]:
    if len(values) < 2:
        return {"estimate": estimate, "low": None, "high": None}
    reach = float(stdtrit(len(values) - 1, 0.975)) * deviation / math.sqrt(len(values))
    return {"estimate": estimate, "low": max(0.0, estimate - reach), "high": estimate + reach}


def _characters(request: pb.GenerateRequest) -> int:
    return len(request.text) + sum(len(message.content) for message in request.chat.messages)

"""Tokens against reward: a fixed number of candidates, and every way to stop earlier, on the same questions and seeds.

    python benchmarks/early_stopping.py [--split test] [--problems N] [--skip N] [--quick] [--out FILE]

The settings were chosen on the development split; the test split is for the figures. Candidate i of a question is
sampled with the same seed in every arm, so that the arms differ in what they stop, not in luck. Every answer comes from
`bon serve` over gRPC, scored and logged. Progress goes to stderr, the last line of stdout is one JSON document:
`early_stopping_report.py` says what is in it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# As a script: Python then looks in this folder first, where it would find `select.py`, and children in none of ours.
if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (sys.path[0], os.environ.get("PYTHONPATH"))))

import argparse
import asyncio
import json
import tempfile
from typing import Any

import bon
import numpy as np

from benchmarks.early_stopping_arms import ARMS, FIXED_N, QUICK, Arm
from benchmarks.early_stopping_plot import plot
from benchmarks.early_stopping_report import Measured, report
from benchmarks.machine import machine, versions
from benchmarks.models import demo_models
from benchmarks.server_stack import TIMEOUT_S, bon_serve
from benchmarks.workload import SEED_STRIDE, Sampling
from bon_server.demo.problems import Problem, Split, is_right, problems

CONCURRENCY = 8
SHARES = {"chain_sum": 0.5, "basic_arithmetic": 0.4, "products": 0.1}
"""Of the tasks among the questions, as in the demo's own evaluation."""


def main() -> None:
    """Measures and prints."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="bon-early-") as folder:
        document = asyncio.run(_measure(options, Path(folder)))
    if options.plot is not None:
        plot(document, options.plot)
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document))  # noqa: T201


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("test", "development"), default="test")
    parser.add_argument("--problems", type=int, default=200, help="about so many questions")
    parser.add_argument("--skip", type=int, default=0, help="so many questions first, which were asked before")
    parser.add_argument("--quick", action="store_true", help="40 questions, and one arm of each kind")
    parser.add_argument("--models", type=Path, default=Path(".demo/models"), help="where the demo's models are kept")
    parser.add_argument("--out", type=Path, help="write the document here as well")
    parser.add_argument("--plot", type=Path, help="draw tokens against reward into this file (.svg or .png)")
    return parser.parse_args()


async def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    policy, reward = demo_models(options.models)
    count = 40 if options.quick else options.problems
    asked = _problems(options.split, options.skip, count)
    arms = [arm for arm in ARMS if not options.quick or arm.name in QUICK]
    arguments = ["--policy", policy, "--reward", reward, "--log", str(folder / "log")]
    measured: dict[str, Measured] = {}
    async with bon_serve(arguments, folder) as address, bon.AsyncClient(address) as client:
        await _ask_all(client, asked[:CONCURRENCY], ARMS[0])
        for arm in arms:
            measured[arm.name] = await _ask_all(client, asked, arm)
            one = measured[arm.name]
            _say(f"{arm.name}: reward {one.best.mean():.3f}, {one.tokens.mean():.0f} tokens a question")
    about = {
        "split": options.split,
        "problems": len(asked),
        "skipped": options.skip,
        "sampling": {"temperature": 0.8, "max_tokens": 48},
    }
    return {**report(arms, measured), **about, "machine": machine(folder), "versions": versions()}


def _problems(split: Split, skip: int, count: int) -> list[Problem]:
    """`count` problems of each task together, after the first `skip`."""
    skipped, all_of_them = (
        problems(split, {task: round(share * number) for task, share in SHARES.items()})
        for number in (skip, skip + count)
    )
    return [problem for problem in all_of_them if problem not in skipped]


async def _ask_all(client: bon.AsyncClient, asked: list[Problem], arm: Arm) -> Measured:
    measured = Measured.empty(len(asked), FIXED_N)
    waiting = iter(enumerate(asked))

    async def caller() -> None:
        for index, problem in waiting:
            await _ask(client, index, problem, arm, measured)

    async with asyncio.TaskGroup() as callers:
        for _ in range(CONCURRENCY):
            callers.create_task(caller())
    return measured


async def _ask(client: bon.AsyncClient, index: int, problem: Problem, arm: Arm, measured: Measured) -> None:
    sampling = Sampling()
    answer = await client.generate(
        problem.prompt,
        temperature=sampling.temperature,
        max_tokens=sampling.max_tokens,
        seed=index * SEED_STRIDE,
        view="all",
        timeout=TIMEOUT_S,
        **arm.options,
    )
    measured.best[index] = answer.best.reward
    measured.right[index] = is_right(problem, answer.best.text)
    measured.tokens[index] = answer.usage.completion_tokens
    measured.reward_tokens[index] = answer.usage.reward_model_tokens
    measured.started[index] = sum(one.completion_tokens > 0 for one in answer.candidates)
    if arm.is_fixed:
        measured.rewards[index] = [one.reward if one.HasField("reward") else np.nan for one in answer.candidates]


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()

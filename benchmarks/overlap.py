"""Scoring beside sampling against scoring after it: the same parts on the same cores, with a reward model of the
policy's size.

The reward model has all the policy's layers and a head that was never trained: what it says is noise, what it costs is
not. Answers end where they end, so their lengths differ as they do in traffic.
"""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.models import Models
from benchmarks.reward_backends import Runs
from benchmarks.workload import Questions
from bon_server.config.settings import PolicyConfig, RewardConfig
from bon_server.models.starting import start_policy, start_reward


@dataclass(frozen=True)
class Overlap:
    """(repetitions,) each, of one question asked both ways."""

    time_ratios: list[float]
    """Overlapped ÷ staged."""
    tail_shares: list[float]
    """Time from the last token to the last score, as a share of the overlapped answer's time."""
    overlap_ratios: list[float]
    """Share of the scoring time during which sampling still ran."""


async def measure_overlap(models: Models, repetitions: int, folder: Path) -> Overlap:
    """Loads both models in this process and its children; which way goes first alternates."""
    reward = _reward_model_of_policy_size(Path(models.policy), folder / "reward")
    result = Overlap([], [], [])
    async with AsyncExitStack() as started:
        policy = await start_policy(PolicyConfig(model=models.policy, dtype=models.dtype))
        started.push_async_callback(policy.close)
        reward_model = await start_reward(RewardConfig(models=(str(reward),)))
        started.push_async_callback(reward_model.close)
        runs = Runs(policy, reward_model)
        questions = Questions(repetitions + 1)
        (first,) = questions.take(1)
        await runs.overlapped(first)
        await runs.staged(first)
        for turn, question in enumerate(questions.take(repetitions)):
            staged = await runs.staged(question) if turn % 2 else None
            overlapped = await runs.overlapped(question)
            staged = staged or await runs.staged(question)
            result.time_ratios.append(overlapped["s"] / staged["s"])
            result.tail_shares.append(overlapped["tail_share"])
            result.overlap_ratios.append(overlapped["overlap"])
            print(  # noqa: T201
                f"{turn + 1}/{repetitions} overlapped {overlapped['s']:.1f} s, staged {staged['s']:.1f} s, "
                f"tail {overlapped['tail_share']:.0%}",
                file=sys.stderr,
                flush=True,
            )
    return result


def _reward_model_of_policy_size(policy: Path, directory: Path) -> Path:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    # The token that pads must not be one that completions end with: it would not be scored.
    tokenizer.pad_token = tokenizer.bos_token if tokenizer.pad_token == tokenizer.eos_token else tokenizer.pad_token
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        policy, num_labels=1, pad_token_id=tokenizer.pad_token_id, dtype=torch.float32
    )
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)
    return directory

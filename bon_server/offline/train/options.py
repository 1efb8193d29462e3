"""What `bon train` is told. None stands for a default that depends on the model, the machine or the method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from bon_server.config.options import (
    NotNegativeNumber,
    Positive,
    PositiveNumber,
    Seed,
    ShareBelowOne,
    check_values,
    panel,
)
from bon_server.core.errors import ConfigError

Method = Literal["sft", "dpo"]
Dtype = Literal["auto", "bfloat16", "float32"]
Schedule = Literal["linear", "cosine", "constant"]

LEARNING = panel("How it learns")
TRAINED = panel("What is trained")
MEASURED = panel("Checkpoints and held-out rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """One training run."""

    data: Path
    """Read the training set from this folder of bon select, or from one file: JSONL (also .gz, .zst) or Parquet."""
    policy: str | Path
    """Start from this model: a directory or a hub id."""
    out: Path
    """Write the tuned model to this directory, for bon serve --policy. It must be missing, empty, or left by the same
    command."""
    method: Method = "sft"
    """Train by this method: sft raises the likelihood of completions, dpo prefers one completion of a pair."""
    seed: Seed = 0
    """Set the order of rows, the split of --eval-share and the first low-rank weights by this number."""
    lora: Annotated[bool, TRAINED, Parameter(negative="--full")] = True
    """Train low-rank updates, which are merged in the end; --full trains all weights instead."""
    lora_rank: Annotated[Positive, TRAINED] = 16
    """Give the low-rank updates this rank."""
    lora_alpha: Annotated[Positive | None, TRAINED] = None
    """Scale the low-rank updates by this number over the rank. Default: twice the rank."""
    dtype: Annotated[Dtype, TRAINED] = "auto"
    """Compute in this number format; auto is bfloat16 where the hardware computes in it, else float32."""
    learning_rate: Annotated[PositiveNumber | None, LEARNING] = None
    """Let the learning rate rise to this peak. Default: by method and size of the model, see docs/training.md."""
    epochs: Annotated[PositiveNumber | None, LEARNING] = None
    """Go over the rows so many times. Default: 2 for sft, 1 for dpo."""
    batch_size: Annotated[Positive, LEARNING] = 16
    """Take so many rows (dpo: pairs) in an optimiser step, over all devices."""
    per_device_train_batch_size: Annotated[Positive | None, LEARNING] = None
    """Compute so many rows of a step at a time on each device. Default: at most 8, on CPUs 4."""
    max_length: Annotated[Positive | None, LEARNING] = None
    """Leave out rows with more tokens, prompt and completion together. Default: the policy's context, at most 4096."""
    beta: Annotated[PositiveNumber, LEARNING] = 0.1
    """Hold a dpo-tuned policy to the first one with this strength."""
    warmup_ratio: Annotated[ShareBelowOne, LEARNING] = 0.05
    """Let the learning rate rise to its peak during this share of the steps."""
    lr_scheduler_type: Annotated[Schedule, LEARNING] = "linear"
    """Let the learning rate follow this curve after its peak."""
    weight_decay: Annotated[NotNegativeNumber, LEARNING] = 0.0
    """Let AdamW pull the weights towards 0 with this coefficient."""
    gradient_checkpointing: Annotated[bool | None, LEARNING, Parameter(negative="--no-gradient-checkpointing")] = None
    """Compute activations twice rather than keep them: less memory, more time. Default: on GPUs for models from 1e9
    parameters, never on CPUs."""
    eval_share: Annotated[ShareBelowOne, MEASURED] = 0.0
    """Hold out this share of the rows, by prompt, and measure their loss at every checkpoint."""
    eval_data: Annotated[Path | None, MEASURED] = None
    """Measure the loss on the rows of this folder or file instead, which is like --data. Default: none."""
    save_steps: Annotated[Positive | None, MEASURED] = None
    """Write a checkpoint after every so many steps. Default: ten checkpoints in all."""


def check(options: TrainOptions) -> None:
    """Raises `ConfigError` for values that are not allowed, or do not go together."""
    check_values(options)
    if options.eval_share and options.eval_data is not None:
        raise ConfigError(f"eval_share: {options.eval_share} given, and eval_data {options.eval_data}; choose one")
    if not options.lora and options.lora_alpha is not None:
        raise ConfigError(f"lora_alpha: {options.lora_alpha} given; a full fine-tune takes none")

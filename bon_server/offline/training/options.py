"""What `bon train` is told. None stands for a default that depends on the model, the machine or the method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from bon_server.errors import ConfigError

Method = Literal["sft", "dpo"]
DTYPES = ("auto", "bfloat16", "float32")
SCHEDULES = ("linear", "cosine", "constant")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """One training run."""

    data: Path
    """A folder that `bon select` wrote, or one file of rows: JSON lines (also .gz, .zst) or Parquet."""
    policy: str | Path
    """Directory or hub id of the model to start from."""
    out: Path
    """Directory of the tuned model; missing, empty, or made by an earlier run with the same options."""
    method: Method = "sft"
    """Likelihood of completions, or direct preference optimisation of pairs."""
    lora: bool = True
    """Train low-rank updates, merged in the end; false: all weights."""
    lora_rank: int = 16
    lora_alpha: int | None = None
    """The updates are scaled by alpha / rank. None: twice the rank."""
    learning_rate: float | None = None
    """Peak. None: by method and size, see `defaults.py`."""
    epochs: float | None = None
    """Times that each row is seen. None: 2 for sft, 1 for dpo."""
    batch_size: int = 16
    """Rows (dpo: pairs) of an optimiser step, over all devices."""
    micro_batch_size: int | None = None
    """Of these, rows that one device computes at a time. None: at most 8, on CPUs 4."""
    max_length: int | None = None
    """Tokens of prompt and completion; longer rows are left out. None: the policy's context, but at most 4096."""
    seed: int = 0
    """Of the order of rows, of the split for `eval_share`, and of the first low-rank weights."""
    dtype: str = "auto"
    """One of `DTYPES`. `auto`: bfloat16 where the hardware computes in it, else float32."""
    beta: float = 0.1
    """Of dpo: how strongly the tuned policy is held to the first one."""
    warmup_share: float = 0.05
    """Share of the steps in which the learning rate rises to its peak."""
    schedule: str = "linear"
    """One of `SCHEDULES`: how it goes on from there."""
    weight_decay: float = 0.0
    eval_share: float = 0.0
    """Share of the rows that are held out, by prompt, and whose loss is measured at every checkpoint; 0: none."""
    eval_data: Path | None = None
    """Rows to hold out instead: a folder or file like `data`."""
    save_steps: int | None = None
    """A checkpoint after so many steps. None: ten in all."""
    gradient_checkpointing: bool | None = None
    """Compute activations twice rather than keep them. None: on GPUs for models from 1e9 parameters, never on CPUs."""


def check(options: TrainOptions) -> None:
    """Raises `ConfigError` for values that are not allowed, or do not go together."""
    _check_names(options)
    for name, allowed, good in _numbers(options):
        if not good:
            raise ConfigError(f"{name}: {getattr(options, name)} given; allowed are {allowed}")
    if options.eval_share and options.eval_data is not None:
        raise ConfigError(f"eval_share: {options.eval_share} given, and eval_data {options.eval_data}; choose one")
    if not options.lora and options.lora_alpha is not None:
        raise ConfigError(f"lora_alpha: {options.lora_alpha} given; a full fine-tune takes none")


def _check_names(options: TrainOptions) -> None:
    choices: Sequence[tuple[str, Sequence[str]]] = (
        ("method", get_args(Method)),
        ("dtype", DTYPES),
        ("schedule", SCHEDULES),
    )
    for name, allowed in choices:
        if getattr(options, name) not in allowed:
            raise ConfigError(f"{name}: {getattr(options, name)!r} given; allowed are {', '.join(allowed)}")


def _numbers(options: TrainOptions) -> list[tuple[str, str, bool]]:
    def from_one(name: str) -> tuple[str, str, bool]:
        value = getattr(options, name)
        return name, "whole numbers from 1", value is None or value >= 1

    def above_zero(name: str) -> tuple[str, str, bool]:
        value = getattr(options, name)
        return name, "finite numbers above 0", value is None or (math.isfinite(value) and value > 0)

    def share(name: str) -> tuple[str, str, bool]:
        return name, "numbers from 0 to below 1", 0 <= getattr(options, name) < 1

    whole = ("lora_rank", "lora_alpha", "batch_size", "micro_batch_size", "max_length", "save_steps")
    decay: Any = options.weight_decay
    return [
        *map(from_one, whole),
        *map(above_zero, ("learning_rate", "epochs", "beta")),
        *map(share, ("warmup_share", "eval_share")),
        ("weight_decay", "finite numbers from 0", math.isfinite(decay) and decay >= 0),
        ("seed", "0 to 2^32 - 1", 0 <= options.seed < 2**32),
    ]

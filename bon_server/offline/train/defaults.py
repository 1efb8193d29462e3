"""Defaults that depend on the model, the machine and the method.

Learning rates of a full fine-tune follow Tülu 3 (Lambert et al. 2024: SFT 5e-6 for 8B and 2e-6 for 70B, DPO 5e-7 and
2e-7) and go up for smaller models; low-rank updates take ten times that (Schulman et al. 2025, "LoRA Without Regret"),
on all linear layers, scaled by alpha = 2 rank (Biderman et al. 2024). Beta 0.1 is that of Rafailov et al. 2023.
"""

from __future__ import annotations

import math
from dataclasses import replace

from bon_server.core.errors import ConfigError
from bon_server.models.weights import ModelFiles
from bon_server.offline.train.options import Dtype, TrainOptions

RATES: dict[str, tuple[tuple[float, float], ...]] = {
    "sft": ((1e9, 2e-5), (3e9, 1e-5), (2e10, 5e-6), (math.inf, 2e-6)),
    "dpo": ((1e9, 1e-6), (2e10, 5e-7), (math.inf, 2e-7)),
}
"""By method: (below so many parameters, peak learning rate of a full fine-tune)."""
LORA_RATE_FACTOR = 10
EPOCHS = {"sft": 2.0, "dpo": 1.0}
MAX_LENGTH = 4096
MICRO_BATCH_SIZE = {"cpu": 4, "gpu": 8}
"""On CPUs fewer rows at a time are quicker, since less of the computation is padding: see docs/training.md."""
CHECKPOINTS = 10
CHECKPOINTING_PARAMETERS = 1e9
"""From here on GPUs compute activations twice, which then are most of what they have to hold."""


def parameters_of(files: ModelFiles) -> int:
    """Numbers in the weight files; tied weights are in them once."""
    return sum(math.prod(shape) for shape in files.shapes.values())


def learning_rate(method: str, lora: bool, parameters: int) -> float:
    """The default peak, see the top of this file."""
    rate = next(rate for below, rate in RATES[method] if parameters < below)
    return rate * LORA_RATE_FACTOR if lora else rate


def resolve(options: TrainOptions, parameters: int, max_model_len: int, processes: int) -> TrainOptions:
    """The options with every None filled in but `save_steps`, which `checkpoint_steps` tells once rows are counted.

    processes: devices that train together. Raises ConfigError: values that do not fit the model or the devices.
    """
    if options.max_length is not None and options.max_length > max_model_len:
        raise ConfigError(f"max_length: {options.max_length} given; the policy's context is {max_model_len} tokens")
    if options.batch_size % processes:
        raise ConfigError(
            f"batch_size: {options.batch_size} given; {processes} processes need a multiple of {processes}"
        )
    each = options.batch_size // processes
    on_gpu = not _on_cpu()
    most = MICRO_BATCH_SIZE["gpu" if on_gpu else "cpu"]
    rate, alpha, epochs = options.learning_rate, options.lora_alpha, options.epochs
    checkpointing = options.gradient_checkpointing
    return replace(
        options,
        learning_rate=learning_rate(options.method, options.lora, parameters) if rate is None else rate,
        lora_alpha=2 * options.lora_rank if alpha is None and options.lora else alpha,
        epochs=EPOCHS[options.method] if epochs is None else float(epochs),
        per_device_train_batch_size=_per_device_batch_size(options.per_device_train_batch_size, each, most),
        max_length=options.max_length or min(max_model_len, MAX_LENGTH),
        dtype=_dtype(options.dtype),
        gradient_checkpointing=on_gpu and parameters >= CHECKPOINTING_PARAMETERS
        if checkpointing is None
        else checkpointing,
    )


def checkpoint_steps(steps: int) -> int:
    """Steps between checkpoints."""
    return max(1, math.ceil(steps / CHECKPOINTS))


def _per_device_batch_size(asked: int | None, each: int, most: int) -> int:
    """each: rows of a step on one device; most: rows at a time that nobody asked for."""
    if asked is None:
        return next(size for size in range(min(most, each), 0, -1) if each % size == 0)
    if each % asked:
        raise ConfigError(
            f"per_device_train_batch_size: {asked} given; each device has {each} rows a step, allowed are divisors"
        )
    return asked


def _dtype(asked: Dtype) -> Dtype:
    import torch

    from bon_server.models.dtype import dtype_for

    if asked != "auto":
        return asked
    if _on_cpu():
        return "float32" if dtype_for("auto", on_cpu=True) == "float32" else "bfloat16"
    return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def _on_cpu() -> bool:
    import torch

    return not torch.cuda.is_available()

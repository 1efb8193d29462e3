"""TRL's trainers on rows that are tokens already. Written against TRL 1.16.

What TRL would do to the rows is left out (its templates, its cuts), and so is what a trainer here has no use for: model
cards, and telling anybody that it runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets.utils.logging import disable_progress_bar
from peft import LoraConfig
from torch.utils.data import Sampler
from transformers import AutoModelForCausalLM, GenerationConfig, PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from bon_server.core.errors import StartupError
from bon_server.models.weights import ModelFiles
from bon_server.offline.train.examples import DPO_COLUMNS, SFT_COLUMNS, Example, as_dataset, lengths_of
from bon_server.offline.train.options import TrainOptions
from bon_server.offline.train.work_folder import WorkFolder

KEPT_CHECKPOINTS = 2
"""The last whole one stays while the next is written."""
MAX_GRAD_NORM = 1.0


class StepSampler(Sampler[int]):
    """Rows in a new order each epoch, and within an optimiser step the longest first.

    So the rows that are computed together are about equally long and little is padding, while which rows make a step
    is left to chance alone. The order is that of the seed and the epoch, whatever has been drawn before.
    """

    def __init__(self, lengths: Sequence[int], step_rows: int, seed: int) -> None:
        self._lengths = np.asarray(lengths)
        self._step_rows = step_rows
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the loader before each epoch, from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(len(self._lengths))
        for first in range(0, len(order), self._step_rows):
            step = order[first : first + self._step_rows]
            yield from step[np.argsort(-self._lengths[step], kind="stable")].tolist()


class _Quiet:
    """What both trainers leave out; `rows_sampler` is set before training."""

    rows_sampler: StepSampler | None = None

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset

    def _get_train_sampler(self, *_: Any) -> StepSampler | None:
        return self.rows_sampler

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None is wanted."""

    def _send_telemetry(self) -> None:
        """Nothing is sent."""


class _Sft(_Quiet, SFTTrainer):  # type: ignore[misc]
    pass


class _Dpo(_Quiet, DPOTrainer):  # type: ignore[misc]
    pass


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """Tells each step's loss, and says when a checkpoint is whole."""

    def __init__(self, work: WorkFolder, seconds_before: float, on_step: Callable[[int, int, float], None]) -> None:
        self._work = work
        self._started = time.monotonic() - seconds_before
        self._on_step = on_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            self._on_step(state.global_step, state.max_steps, float(logs["loss"]))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            checkpoint = self._work.checkpoints / f"checkpoint-{state.global_step}"
            self._work.complete(checkpoint, time.monotonic() - self._started)


def load_model(files: ModelFiles, dtype: torch.dtype) -> Any:
    """The policy's weights in a number format. Raises StartupError: transformers cannot load them."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            files.directory, dtype=dtype, trust_remote_code=False, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # libraries raise anything here, and all of it means the same
        raise StartupError(
            f"model {files.directory}: transformers cannot load it to train it ({type(error).__name__})"
        ) from error
    # Checkpoints hold it too, and those of some models are not valid by the rules of the library that saves them.
    model.generation_config = GenerationConfig()
    return model


def build_trainer(
    options: TrainOptions,
    files: ModelFiles,
    tokenizer: Any,
    train: list[Example],
    held_out: list[Example],
    checkpoints: Path,
) -> Any:
    """A TRL trainer that has all it needs. options: resolved, with `save_steps`."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    disable_progress_bar()
    sft = options.method == "sft"
    # A full fine-tune keeps its weights in float32: small steps would be lost in the rounding of bfloat16.
    model = load_model(files, getattr(torch, options.dtype) if options.lora else torch.float32)
    pad_id = next(one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if one is not None)
    names = SFT_COLUMNS if sft else DPO_COLUMNS
    arguments: dict[str, Any] = {
        "model": model,
        "args": _sft_config(options, checkpoints) if sft else _dpo_config(options, checkpoints),
        "train_dataset": as_dataset(train, names),
        "eval_dataset": as_dataset(held_out, names) if held_out else None,
        "processing_class": tokenizer,
        "peft_config": _lora(options) if options.lora else None,
        "data_collator": (DataCollatorForLanguageModeling if sft else DataCollatorForPreference)(pad_token_id=pad_id),
    }
    if not sft and not options.lora:
        arguments["ref_model"] = load_model(files, torch.float32)
    trainer = (_Sft if sft else _Dpo)(**arguments)
    trainer.rows_sampler = StepSampler(lengths_of(train), options.batch_size, options.seed)
    trainer.remove_callback(PrinterCallback)  # it prints to stdout
    return trainer


def fit(
    trainer: Any,
    work: WorkFolder,
    checkpoint: Path | None,
    seconds: float,
    on_step: Callable[[int, int, float], None],
) -> None:
    """Trains on from a checkpoint, or from the start. seconds: trained before."""
    trainer.add_callback(_Reporter(work, seconds, on_step))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _lora(options: TrainOptions) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
    )


def _common(options: TrainOptions, checkpoints: Path) -> dict[str, Any]:
    from accelerate import PartialState

    each = options.batch_size // PartialState().num_processes
    assert options.per_device_train_batch_size is not None
    evaluates = bool(options.eval_share or options.eval_data)
    schedule = {"constant": "constant_with_warmup"}.get(options.lr_scheduler_type, options.lr_scheduler_type)
    on_cpu = not torch.cuda.is_available()
    return {
        "output_dir": str(checkpoints),
        "per_device_train_batch_size": options.per_device_train_batch_size,
        "per_device_eval_batch_size": options.per_device_train_batch_size,
        "gradient_accumulation_steps": each // options.per_device_train_batch_size,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": schedule,
        "warmup_steps": options.warmup_ratio,
        "weight_decay": options.weight_decay,
        "max_grad_norm": MAX_GRAD_NORM,
        "num_train_epochs": options.epochs,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": options.save_steps,
        "save_total_limit": KEPT_CHECKPOINTS,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": options.save_steps,
        "prediction_loss_only": True,
        "include_num_input_tokens_seen": "non_padding",
        "seed": options.seed,
        "bf16": options.dtype == "bfloat16" and not options.lora,
        "gradient_checkpointing": options.gradient_checkpointing,
        "dataloader_pin_memory": not on_cpu,
        "use_cpu": on_cpu,
        "report_to": "none",
        "log_level": "error",
        "log_level_replica": "error",
        "disable_tqdm": True,
        "max_length": None,
    }


def _sft_config(options: TrainOptions, checkpoints: Path) -> SFTConfig:
    return SFTConfig(**_common(options, checkpoints), packing=False)


def _dpo_config(options: TrainOptions, checkpoints: Path) -> DPOConfig:
    return DPOConfig(**_common(options, checkpoints), beta=options.beta)

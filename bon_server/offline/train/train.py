"""`bon train`: from a training set to a model directory that `bon serve --policy` loads.

Before it begins it asks whether what the run writes fits its disk. In the process that trains, the main memory that
each step frees is kept for the next one (`keep_freed_memory`).
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bon_server import __version__
from bon_server.core.errors import BonError, ConfigError, StartupError, TrainingError
from bon_server.models.weights import find_model
from bon_server.offline.train import curve
from bon_server.offline.train.defaults import checkpoint_steps, parameters_of
from bon_server.offline.train.examples import Audit
from bon_server.offline.train.model_directory import write_model
from bon_server.offline.train.options import TrainOptions, check
from bon_server.offline.train.plan import Rows, TrainingPlan, make_plan, read_rows, warnings_of
from bon_server.offline.train.sources import described
from bon_server.offline.train.work_folder import (
    RESULT_NAME,
    WorkFolder,
    check_same,
    finished,
    seconds_of,
    step_of,
)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    step: int
    """Optimiser steps done, those of earlier runs that this one goes on from included."""
    steps: int
    """Of the whole run."""
    loss: float | None
    """Of the last step, nats a token (dpo: nats a pair); None before the first one."""


OnProgress = Callable[[Progress], None]
OnWarning = Callable[[str], None]


def train(
    options: TrainOptions, on_progress: OnProgress = lambda _: None, on_warning: OnWarning = lambda _: None
) -> dict[str, Any]:
    """Trains, and returns the content of `training.json` in `options.out`.

    A run that was killed is gone on with by the same options; of a finished one the result is returned at once, with
    `"already_finished": true` in it. Under accelerate's launcher every process calls this.

    Raises ConfigError: options that are not allowed. StartupError: the model cannot be loaded, or a package is missing.
    TrainingError: data that cannot be used, an `out` that holds something else, no room, or a run that diverged.
    """
    check(options)
    state = _processes()
    if state.device.type == "cpu":
        keep_freed_memory()
    plan = make_plan(options, state.num_processes)
    work = WorkFolder(options.out)
    there = finished(work.out)
    if there is not None:
        check_same(work.out, there["run"], json.loads(json.dumps(plan.run)))
        if work.path.exists() and state.is_main_process:
            with work.held():
                work.remove()
        return there | {"already_finished": True}
    rows = read_rows(plan)
    told = warnings_of(plan, rows)
    if state.is_main_process:
        for warning in told:
            on_warning(warning)
        check_room(work.out, plan)
    with work.held() if state.is_main_process else nullcontext(), _explained(work):
        return _run(plan, rows, told, work, state, on_progress)


def _processes() -> Any:
    """Which of the processes that train together this one is. Raises StartupError or ConfigError."""
    try:
        import peft  # noqa: F401 -- found missing here, not after the data was read
        import torch
        import trl  # noqa: F401
        from accelerate import PartialState
    except ImportError as error:
        raise StartupError(
            f"training needs {error.name}: install bon-server with its extra [train], beside [cpu] or [cuda]"
        ) from error
    # On CPUs processes only find each other when it is said that they are to use them, as the trainer does later.
    state = PartialState(cpu=not torch.cuda.is_available())
    if state.num_processes == 1 and torch.cuda.device_count() > 1:
        raise ConfigError(
            f"devices: {torch.cuda.device_count()} GPUs are visible to one process; start it with accelerate's launcher"
            " (see docs/training.md), or set CUDA_VISIBLE_DEVICES to one of them"
        )
    return state


def _run(
    plan: TrainingPlan, rows: Rows, told: list[str], work: WorkFolder, state: Any, on_progress: OnProgress
) -> dict[str, Any]:
    if state.is_main_process:
        work.begin(plan.run)
    state.wait_for_everyone()
    _fit(plan, rows, work, on_progress if state.is_main_process else lambda _: None)
    state.wait_for_everyone()
    if state.is_main_process:
        try:
            _finish(plan, rows, told, work)
        except TrainingError:  # it diverged, and would again
            work.remove()
            raise
        work.publish()
    state.wait_for_everyone()
    document = finished(work.out)
    assert document is not None
    return document


def _steps(plan: TrainingPlan, rows: Rows) -> int:
    """Optimiser steps of the whole run."""
    assert plan.options.epochs is not None
    return math.ceil(plan.options.epochs * math.ceil(len(rows.train) / plan.options.batch_size))


def _fit(plan: TrainingPlan, rows: Rows, work: WorkFolder, on_progress: OnProgress) -> None:
    """Trains until the last checkpoint is there."""
    steps, checkpoint = _steps(plan, rows), work.last_checkpoint()
    on_progress(Progress(step_of(checkpoint), steps, None))
    if step_of(checkpoint) >= steps:
        return
    from bon_server.offline.train.trainer import build_trainer, fit

    options = replace(plan.options, save_steps=plan.options.save_steps or checkpoint_steps(steps))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries to their developers
        trainer = build_trainer(options, plan.files, plan.tokenizer, rows.train, rows.held_out, work.checkpoints)
        fit(trainer, work, checkpoint, seconds_of(checkpoint), lambda *told: on_progress(Progress(*told)))


def _finish(plan: TrainingPlan, rows: Rows, told: list[str], work: WorkFolder) -> None:
    """Makes the model directory from the last checkpoint."""
    checkpoint = work.last_checkpoint()
    assert checkpoint is not None
    shutil.rmtree(work.new, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_model(work.new, plan.files, plan.base_spec, checkpoint, plan.options.lora)
    history, tokens = curve.history_of(checkpoint)
    title = f"{plan.options.method} of {plan.files.id}"
    drawn = curve.draw(history, work.new / curve.PICTURE_NAME, title)
    document = {
        "run": plan.run,
        "method": plan.options.method,
        "revision": find_model(str(work.new)).revision,
        "policy": {"given": str(plan.options.policy), **plan.run["policy"]},
        "data": {"given": str(plan.options.data), **described(plan.source), "rows": _counts(rows)},
        "eval_data": _eval_data(plan, rows),
        "options": plan.run["options"],
        "metrics": _metrics(history, tokens, checkpoint),
        "warnings": told,
        "versions": _versions(),
        "learning_curve": curve.PICTURE_NAME if drawn else None,
        "history": history,
    }
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    (work.new / RESULT_NAME).write_text(text, encoding="utf-8")


def _counts(rows: Rows) -> dict[str, Any]:
    return _audit(rows.audit) | {"trained": len(rows.train), "held_out": 0 if rows.eval_audit else len(rows.held_out)}


def _audit(audit: Audit) -> dict[str, Any]:
    return asdict(audit) | {"left_out": dict(audit.left_out), "read": audit.rows}


def _eval_data(plan: TrainingPlan, rows: Rows) -> dict[str, Any] | None:
    if plan.eval_source is None or rows.eval_audit is None:
        return None
    given = str(plan.options.eval_data)
    return {"given": given, **described(plan.eval_source), "rows": _audit(rows.eval_audit)}


def _metrics(history: curve.History, tokens: int, checkpoint: Path) -> dict[str, Any]:
    losses = [one["loss"] for one in history if "loss" in one]
    held_out = [one["eval_loss"] for one in history if "eval_loss" in one]
    return {
        "steps": step_of(checkpoint),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "first_eval_loss": held_out[0] if held_out else None,
        "last_eval_loss": held_out[-1] if held_out else None,
        "tokens": tokens,
        "seconds": round(seconds_of(checkpoint), 3),
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
    return {"bon-server": __version__, **{package: version(package) for package in packages}}


@contextmanager
def _explained(work: WorkFolder) -> Iterator[None]:
    """Turns what machines run out of into a sentence. Raises TrainingError."""
    import torch

    try:
        yield
    except BonError:
        raise
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            "out of memory on the device; lower --per-device-train-batch-size, or give --gradient-checkpointing"
        ) from error
    except Exception as error:  # libraries name a full disk in several ways
        if _is_full(error, work):
            raise TrainingError(
                f"out: no room is left on the disk of {work.path}; free some, and the same command goes on"
            ) from error
        raise


def _is_full(error: BaseException, work: WorkFolder) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    wrote = "No space left" in str(error) or "write" in str(error)
    return wrote and shutil.disk_usage(work.path).free < 1 << 24


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of glibc's `mallopt` (malloc.h)."""
_NEVER = -1


def keep_freed_memory() -> bool:
    """Keeps what this process frees for what it allocates next, until it ends. Returns whether that could be set.

    glibc gives every large block back to the kernel as soon as it is freed, and the next step has to have the same
    gigabytes mapped and zeroed again, page by page. With a policy of 135 M parameters on two cores, one run each, SFT
    in 16 rows a step took 9 % less time with the memory kept, at a peak 11 % higher; the third step of GRPO, with 24
    answers at once, 28 s instead of 42 s. Other C libraries cannot be told.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Blocks of any size come from the heap, and the heap does not shrink.
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


_FULL_BYTES = 12
"""Of a checkpoint of a full fine-tune, for each parameter: the weight and Adam's two moments, in float32."""
_WHOLE_CHECKPOINTS = 3
"""Two are kept while the next is written."""


def check_room(out: Path, plan: TrainingPlan) -> None:
    """Raises TrainingError: too little. Low-rank updates are not counted: they are small beside the model."""
    needed_bytes = plan.files.weights_bytes
    if not plan.options.lora:
        needed_bytes += _WHOLE_CHECKPOINTS * _FULL_BYTES * parameters_of(plan.files)
    place = next(folder for folder in (out, *out.parents) if folder.exists())
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < needed_bytes:
        raise TrainingError(
            f"out: {out} needs about {needed_bytes >> 20} MiB for the model and its checkpoints, and its disk has"
            f" {free_bytes >> 20} MiB free"
        )

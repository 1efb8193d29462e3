"""What a checkpoint's log-probabilities have to be, computed by another library in a process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from bon_server.errors import StartupError
from bon_server.policy.child_process import live_and_die_with_parent


async def expected_logprobs(directory: Path, token_ids: Sequence[int]) -> Any:
    """(len(token_ids), vocabulary) float32: log-probabilities, in nats, of what comes after each prefix of token_ids.

    By transformers, in float32. Raises StartupError: it cannot load the model, or a weight is not finite.
    """
    return await _in_a_child(_compute, directory, tuple(token_ids))


def _compute(directory: Path, token_ids: tuple[int, ...]) -> Any:
    os.nice(10)  # what is served goes first
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, trust_remote_code=False, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # libraries raise anything here, and all of it means the same
        raise StartupError(f"model {directory}: transformers cannot load it ({type(error).__name__})") from error
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise StartupError(f"model {directory}: the weight {name} has values that are not finite")
    with torch.inference_mode():
        logits = model.eval()(torch.tensor([token_ids])).logits[0]
    return logits.log_softmax(-1).numpy()


async def _in_a_child(function: Callable[..., Any], directory: Path, *arguments: Any) -> Any:
    """Runs a function in a new process, which ends with this one, or at once when this is cancelled."""
    earlier = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    pool = ProcessPoolExecutor(max_workers=1, mp_context=spawn, initializer=live_and_die_with_parent)
    try:
        return await asyncio.get_running_loop().run_in_executor(pool, function, directory, *arguments)
    except BrokenProcessPool as error:
        raise StartupError(f"model {directory}: the process that tested it died; was there memory for it?") from error
    except asyncio.CancelledError:
        for process in set(multiprocessing.active_children()) - earlier:
            process.kill()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)

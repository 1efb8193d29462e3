"""How the process of an engine lives, dies and logs. That process imports it: nothing here may start anything.

vLLM's own engine outlives a server that was killed, with all its memory, and ends at a Ctrl-C meant for the server,
which still wants to finish what runs. The executors here live and die with their parent, and first change two things:

* Messages of vLLM that repeat what callers sent or what was sampled stay out of the log.
* Log-probabilities come without ranks. vLLM tells with each which place its token has among all, and nothing here reads
  it. On a CPU, where nothing is compiled, counting took two thirds of what log-probabilities cost: 128 samples of a
  model with 49,152 tokens 60 ms of a core at each step, their log-softmax 26 ms.
"""

from __future__ import annotations

import logging
import threading
from functools import partial

import torch
from tqdm import tqdm
from vllm.platforms import current_platform
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.sample import sampler

from bon_server.models.vllm.shared_grammars import use_shared_grammars
from bon_server.system.child_process import live_and_die_with_parent

WITH_CONTENT = {
    "vllm.logging_utils.dump_input": "Dumping scheduler output",
    "vllm.v1.core.sched.scheduler": "grammar rejected",
}
"""Logger, and words of the message: all that was to be computed when a step failed, with constraints and stop texts;
the tokens at which a candidate failed on its grammar."""


def keep_content_out_of_the_log() -> None:
    """From now on these messages are not written by this process."""
    for name, words in WITH_CONTENT.items():
        logging.getLogger(name).addFilter(partial(_is_without, words))


def _is_without(words: str, entry: logging.LogRecord) -> bool:
    return words not in str(entry.msg)


def leave_out_token_ranks() -> None:
    """From now on every rank that the engine in this process tells is 0."""
    sampler.batched_count_greater_than = _zeros


def _zeros(logprobs: torch.Tensor, of_tokens: torch.Tensor) -> torch.Tensor:
    """(samples,) int64, for log-probabilities (samples, vocabulary)."""
    return torch.zeros(len(logprobs), dtype=torch.int64, device=logprobs.device)


class OneProcessExecutor(UniProcExecutor):  # type: ignore[misc]
    """Computes in the engine's own process."""

    def _init_executor(self) -> None:
        _prepare_process()
        super()._init_executor()


class ProcessPerGpuExecutor(MultiprocExecutor):  # type: ignore[misc]
    """One worker process for each GPU; they end when the engine's process does."""

    def _init_executor(self) -> None:
        _prepare_process()
        super()._init_executor()


def _prepare_process() -> None:
    live_and_die_with_parent()
    tqdm.set_lock(threading.RLock())  # its own is a named semaphore, and outlives a process that is killed
    keep_content_out_of_the_log()
    use_shared_grammars()
    if current_platform.is_cpu():
        leave_out_token_ranks()

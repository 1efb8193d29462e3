"""How the process of the engine lives and dies. Imported by that process: nothing here may start anything.

vLLM's own engine outlives a server that was killed, with all its memory, and ends at a Ctrl-C meant for the server,
which still wants to finish what runs.
"""

from __future__ import annotations

import threading

from tqdm import tqdm
from vllm.platforms import current_platform
from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from bon_server.engine.child_process import live_and_die_with_parent
from bon_server.engine.content import keep_content_out_of_the_log
from bon_server.engine.shared_grammars import use_shared_grammars
from bon_server.engine.token_ranks import leave_out_token_ranks


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

"""What `test_lifecycle` starts in the place of an engine: a process with a worker. Imported by both, so it is small."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path


def engine_process(pids: Path) -> None:
    """Starts a worker, says which the two are, and never gets ready."""
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    worker.start()
    whole = pids.with_suffix(".whole")
    whole.write_text(f"{multiprocessing.current_process().pid} {worker.pid}")
    whole.rename(pids)
    worker.join()


def start(pids: Path) -> None:
    """As vLLM does: returns when the engine is ready or its process has ended."""
    process = multiprocessing.get_context("spawn").Process(target=engine_process, args=(pids,))
    process.start()
    process.join()

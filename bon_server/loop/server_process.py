"""A `bon serve` in the background, for the length of a `with` block; it never outlives the process that started it."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

from bon_server.core.errors import StartupError
from bon_server.system.child_process import live_and_die_with_parent

START_TIMEOUT_S = 1800.0
STOP_TIMEOUT_S = 45.0


@contextmanager
def serving(arguments: Sequence[str], folder: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Starts a server on free ports, yields its address once it answers, and ends it on leaving.

    A Ctrl-C reaches this process alone, which then ends the server; when this one is killed, so are the server and its
    engines. folder: gets `server.log` and `ready.json`. on_wait: called a few times a second until the server answers.
    Raises `StartupError` with the last lines of its log when it does not come up.
    """
    ready_file, log_file = folder / "ready.json", folder / "server.log"
    ready_file.unlink(missing_ok=True)  # of a run that was killed
    words = ["serve", *arguments, "--port", "0", "--metrics-port", "0", "--ready-file", str(ready_file)]
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(words, log_file), name="bon serve")
    process.start()
    try:
        _wait_until_ready(process, ready_file, log_file, on_wait)
        yield json.loads(ready_file.read_text(encoding="utf-8"))["address"]
    finally:
        _stop(process)


def _serve(words: Sequence[str], log_file: Path) -> None:
    """The server's process."""
    live_and_die_with_parent()
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    sys.argv = ["bon", *words]
    runpy.run_module("bon_server.cli", run_name="__main__")


def _wait_until_ready(process: BaseProcess, ready_file: Path, log_file: Path, on_wait: Callable[[], None]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready_file.exists():
        if not process.is_alive() or time.monotonic() > deadline:
            said = log_file.read_text(encoding="utf-8", errors="replace") if log_file.exists() else "(nothing was said)"
            tail = "\n".join(said.splitlines()[-8:])
            raise StartupError(f"the server did not start; the end of {log_file}:\n{tail}")
        on_wait()
        time.sleep(0.2)


def _stop(process: BaseProcess) -> None:
    process.terminate()
    process.join(STOP_TIMEOUT_S)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()

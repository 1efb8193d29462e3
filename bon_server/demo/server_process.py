"""A `bon serve` in the background, for the length of a `with` block."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bon_server.errors import StartupError

START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 45.0


@contextmanager
def serving(arguments: Sequence[str], folder: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Starts a server on free ports, yields its address once it answers, and ends it on leaving.

    folder: gets `server.log` and `ready.json`. on_wait: called a few times a second until the server answers.
    Raises `StartupError` with the last lines of its log when it does not come up.
    """
    ready_file, log_file = folder / "ready.json", folder / "server.log"
    command = [sys.executable, "-m", "bon_server.cli", "serve", *arguments]
    command += ["--port", "0", "--metrics-port", "0", "--ready-file", str(ready_file)]
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_until_ready(process, ready_file, log_file, on_wait)
        yield json.loads(ready_file.read_text(encoding="utf-8"))["address"]
    finally:
        _stop(process)


def _wait_until_ready(
    process: subprocess.Popen[bytes], ready_file: Path, log_file: Path, on_wait: Callable[[], None]
) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready_file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            tail = log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
            raise StartupError(f"the server did not start; the end of {log_file}:\n" + "\n".join(tail))
        on_wait()
        time.sleep(0.2)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

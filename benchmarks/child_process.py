"""A process in the background, for the length of a `with` block."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.2


@asynccontextmanager
async def running(
    command: Sequence[str],
    log_file: Path,
    answers: Callable[[], Awaitable[bool]],
    environment: Mapping[str, str] = {},
) -> AsyncIterator[None]:
    """Runs `command` with `environment` added to ours; goes on once `answers()` is true; ends it on leaving.

    Its output goes to `log_file`. It gets a process group of its own, so that nothing it started is left behind.
    Raises RuntimeError with the end of its output when it does not come up.
    """
    process = _start(command, log_file, environment)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not await answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"{' '.join(command[:4])} … did not start; the end of {log_file}:\n{_tail(log_file)}"
                )
            await asyncio.sleep(POLL_S)
        yield
    finally:
        await asyncio.to_thread(_stop, process)


def _start(command: Sequence[str], log_file: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with log_file.open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )


def _tail(log_file: Path) -> str:
    return "\n".join(log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

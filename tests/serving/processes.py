"""`bon serve` as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

START_S = 60.0
"""To start an interpreter and a synthetic server, on a busy machine."""


@dataclass
class Process:
    """`bon serve` with synthetic models."""

    process: subprocess.Popen[str]
    address: str
    log: Path

    def signal(self, number: int = signal.SIGTERM) -> float:
        """Sends a signal and returns when."""
        self.process.send_signal(number)
        return time.monotonic()

    async def end(self, within_s: float = START_S) -> int:
        """Waits for the exit code."""
        return await asyncio.to_thread(self.process.wait, within_s)


def command(tmp_path: Path, *more: str) -> list[str]:
    """The words after `python`."""
    ports = ["--port", "0", "--metrics-port", "0"]
    return ["-m", "bon_server.cli", "serve", "--reward", "synthetic", "--log", str(tmp_path / "log"), *ports, *more]


def environment() -> dict[str, str]:
    """Ours, without settings of somebody else's server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("BON_")}


def engines(parent: int) -> list[int]:
    """The engines' processes, by the name that vLLM gives them."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                status = (process / "stat").read_text()
                name = (process / "cmdline").read_text()
            except OSError:
                continue  # it has ended meanwhile
            if "EngineCore" in name and int(status.rpartition(")")[2].split()[1]) == parent:
                found.append(int(process.name))
    return found


class Serve:
    """Starts servers as processes, and ends those that are left."""

    def __init__(self, tmp_path: Path, output: int = subprocess.PIPE) -> None:
        """output: a descriptor; to a pipe a server may say only as much as fits until it has ended."""
        self._tmp_path = tmp_path
        self._output = output
        self._processes: list[subprocess.Popen[str]] = []

    def __call__(
        self, policy: str = "synthetic", *more: str, program: Sequence[str] = ("-m", "bon_server.cli")
    ) -> Process:
        """Returns once it answers. program: the words after `python` that run `bon`."""
        ready = self._tmp_path / f"ready-{len(self._processes)}"
        words = command(self._tmp_path, "--policy", policy, "--ready-file", str(ready), *more)
        process = subprocess.Popen(
            [sys.executable, *program, *words[2:]],
            env=environment(),
            text=True,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        self._processes.append(process)
        deadline = time.monotonic() + START_S
        while not ready.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return Process(process, json.loads(ready.read_text())["address"], self._tmp_path / "log")

    def close(self) -> None:
        """Ends what is left."""
        for process in self._processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

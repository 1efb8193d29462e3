"""What a client was told is on disk, whatever happens to the server.

A real `bon serve` is killed with SIGKILL, again and again, in the middle of a real `bon harvest`, which waits for each
restart and goes on. Nothing is random but the moments of the kills.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bon_server.core.types import Outcome
from bon_server.log.read.reader import LogReader

LINES_A_KILL = 35
"""Enough that the harvest outlives the last kill."""
NEW_ANSWERS = 5
"""How many there have to be between two kills."""
BON = (sys.executable, "-m", "bon_server.cli")


class Processes:
    """The two commands, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.answers = folder / "answers.jsonl"
        self._target = f"127.0.0.1:{_free_port()}"
        self._started: list[subprocess.Popen[bytes]] = []

    def serve(self) -> subprocess.Popen[bytes]:
        """A server that answers; on the same port each time."""
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        server = self._run(
            *("serve", "--policy", "synthetic:tokens=20,tokens_per_s=200", "--reward", "synthetic"),
            *("--log", self.log, "--port", self._target.rpartition(":")[2], "--metrics-port", "0"),
            *("--ready-file", ready),
        )
        self.until(lambda: ready.exists() or server.poll() is not None, limit_s=90)
        assert server.poll() is None, self.said()
        return server

    def harvest(self, prompts: Path, result: Path) -> subprocess.Popen[bytes]:
        """Its JSON goes to `result`, what was acknowledged to `answers`."""
        command = ("harvest", prompts, "-n", "4", "--target", self._target, "--json", "--out", self.answers)
        with result.open("wb") as stdout:
            return self._run(*command, stdout=stdout)

    def acknowledged(self) -> dict[str, str]:
        """Best text by request id, of every answer that has reached the client; each must have come once."""
        if not self.answers.exists():
            return {}
        whole_lines = self.answers.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        answers = [json.loads(line) for line in whole_lines]
        best = {answer["request_id"]: answer["text"] for answer in answers}
        assert len(best) == len(answers)
        return best

    def await_answers(self, count: int) -> None:
        """Waits until so many have reached the client."""
        self.until(lambda: len(self.acknowledged()) >= count, limit_s=90)

    def until(self, condition: Callable[[], bool], limit_s: float) -> None:
        """Waits for it."""
        give_up_s = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < give_up_s, self.said()
            time.sleep(0.01)

    def said(self) -> str:
        """The end of what both printed."""
        return (self.folder / "output").read_text(encoding="utf-8", errors="replace")[-3000:]

    def kill_all(self) -> None:
        """Leaves nothing running."""
        for process in self._started:
            process.kill()
            process.wait()

    def _run(self, *arguments: str | Path, stdout: Any = None) -> subprocess.Popen[bytes]:
        with (self.folder / "output").open("ab") as output:
            process = subprocess.Popen((*BON, *arguments), stdout=stdout or output, stderr=output)
        self._started.append(process)
        return process


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Both commands; what still runs at the end is killed."""
    both = Processes(tmp_path)
    yield both
    both.kill_all()


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.long)])
def test_what_was_acknowledged_is_logged_once_after_each_kill(processes: Processes, tmp_path: Path, kills: int) -> None:
    lines = kills * LINES_A_KILL
    prompts, result = tmp_path / "prompts.jsonl", tmp_path / "result.json"
    prompts.write_text("".join(f'{{"prompt": "question {i}"}}\n' for i in range(lines)), encoding="utf-8")
    moments = random.Random(7)
    server = processes.serve()
    harvest = processes.harvest(prompts, result)
    for kill in range(kills):
        processes.await_answers(len(processes.acknowledged()) + NEW_ANSWERS)
        time.sleep(moments.uniform(0.0, 0.2))
        assert harvest.poll() is None, f"the harvest was over before kill {kill}: {processes.said()}"
        server.send_signal(signal.SIGKILL)
        server.wait()
        _assert_logged_once(processes.log, processes.acknowledged())
        server = processes.serve()

    assert harvest.wait(timeout=120) == 0, processes.said()
    answers = processes.acknowledged()
    _assert_logged_once(processes.log, answers)
    summary = json.loads(result.read_text(encoding="utf-8"))
    assert len(answers) == summary["requests"] == lines
    assert summary["failed"] == 0
    _assert_replays(processes, prompts, result, answers)


def _assert_logged_once(log: Path, acknowledged: dict[str, str]) -> None:
    """Every acknowledged id has exactly one answered record, with the text that was acknowledged."""
    best: dict[str, str] = {}
    times: Counter[str] = Counter()
    with LogReader(log) as reader:
        for record in reader.records():
            if record.outcome in (Outcome.OK, Outcome.PARTIAL):
                assert record.selected_index is not None
                best[record.request_id] = record.candidates[record.selected_index].text
                times[record.request_id] += 1
    assert {request_id: best.get(request_id) for request_id in acknowledged} == acknowledged
    assert {request_id for request_id, count in times.items() if count > 1} == set()


def _assert_replays(processes: Processes, prompts: Path, result: Path, answers: dict[str, str]) -> None:
    """The same command run again gets the same answers from the log."""
    assert processes.harvest(prompts, result).wait(timeout=120) == 0, processes.said()
    assert json.loads(result.read_text(encoding="utf-8"))["replayed"] == len(answers)
    assert processes.acknowledged() == answers


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

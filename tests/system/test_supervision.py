"""Threads and tasks in the background: none ends unseen, and none is started past `bon_server.system.supervision`."""

from __future__ import annotations

import ast
import asyncio
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bon_server.system.supervision import FirstDeath, start_task, start_thread
from tests.waiting import SOON_S

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "bon_server"
SECRET = "the colour of the sixth elephant"

STARTERS = {"Thread", "Timer", "create_task", "ensure_future"}
"""What starts something that may end by an exception which nobody sees."""
ELSEWHERE = {
    "system/supervision.py": "the place",
    "log/seal/process.py": "a timer that kills a process, for one answer",
    "system/child_process.py": "in the engine's process, which it kills, whatever happens",
    # Tasks whose end is waited for by who started them:
    "core/candidates.py": "of one request",
    "models/vllm/engine.py": "of one start",
    "loop/harvest/loop.py": "of one command",
    "offline/rescore/rescorable.py": "of one command",
    "operator_code/pool.py": "reaps one process that was killed",
    "operator_code/worker.py": "of one call, in the worker",
    "models/vllm/grammar_gate.py": "of one constraint",
    "models/policy/synthetic.py": "of one sample",
    "core/pruning.py": "of one request",
    "models/reward/ensemble.py": "of one score",
    "core/scores.py": "of one request",
    "serving/lifecycle/accepting.py": "of one call that is refused",
    "serving/attempt.py": "of one request",
    "serving/rpc/feedback.py": "of one observation",
    "serving/lifecycle/listener.py": "of a server that was replaced",
    "serving/rpc/service.py": "of one stream",
    "serving/lifecycle/signals.py": "of the end of a server",
    "loop/soak/calls.py": "of one command",
    "loop/soak/run.py": "of one command",
    "loop/soak/traffic.py": "of one command",
}
"""Files that may start some, and why."""


def _starters(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in STARTERS:
                yield f"{path.relative_to(PACKAGE)}:{node.lineno} calls {name}"


def test_threads_and_tasks_are_started_in_one_place() -> None:
    found = {path.relative_to(PACKAGE).as_posix(): list(_starters(path)) for path in PACKAGE.rglob("*.py")}
    assert [one for file, calls in found.items() if file not in ELSEWHERE for one in calls] == []
    assert [file for file in ELSEWHERE if not found.get(file)] == [], "nothing is started there"


@pytest.mark.parametrize("error", [KeyError(SECRET), MemoryError(SECRET), SystemExit(SECRET)])
def test_a_thread_that_ends_by_a_bug_is_told(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    deaths = FirstDeath()

    def run() -> None:
        raise error

    start_thread("sweeper", run, deaths.note).join(SOON_S)
    assert deaths.why is not None
    for part in ("the thread sweeper", type(error).__name__, "test_supervision.py", "run"):
        assert part in deaths.why
    assert deaths.why in caplog.text and SECRET not in deaths.why + caplog.text


def test_a_thread_that_ends_as_it_should_is_not_told() -> None:
    deaths, ran = FirstDeath(), threading.Event()
    start_thread("sweeper", ran.set, deaths.note).join(SOON_S)
    assert ran.is_set() and deaths.why is None


async def test_a_task_that_ends_by_a_bug_is_told(caplog: pytest.LogCaptureFixture) -> None:
    deaths = FirstDeath()

    async def work() -> None:
        raise KeyError(SECRET)

    await start_task("follower", work, deaths.note)
    assert deaths.why is not None and "the task follower ended by a bug: KeyError in test_supervision.py" in deaths.why
    assert SECRET not in deaths.why + caplog.text


async def test_a_task_that_is_cancelled_is_not_told() -> None:
    deaths = FirstDeath()
    for begun in (True, False):
        task = start_task("follower", _wait, deaths.note)
        if begun:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert deaths.why is None


async def _wait() -> None:
    await asyncio.Event().wait()


def test_only_the_first_death_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    deaths = FirstDeath()
    deaths.note("first")
    deaths.note("second")
    assert deaths.why == "first"

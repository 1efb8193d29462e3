"""A child that lives and dies with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from bon_server.system.child_process import live_and_die_with_parent

ROOT = Path(__file__).parents[2]
PARENT = """
import multiprocessing, time
from bon_server.system.child_process import live_and_die_with_parent

def grandchild():
    time.sleep(60)

def child(ready, worker):
    live_and_die_with_parent()
    process = multiprocessing.Process(target=grandchild)
    process.start()
    worker.value = process.pid
    ready.set()
    time.sleep(60)

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    worker = spawn.Value("i", 0)
    process = spawn.Process(target=child, args=(ready, worker))
    process.start()
    ready.wait()
    print(process.pid, worker.value, flush=True)
    time.sleep(60)
"""


def is_gone(pid: int) -> bool:
    """Ended, even if nobody has asked for its exit code yet."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    return True


@pytest.fixture
def script(tmp_path: Path) -> str:
    """A file: spawned children import the main module again."""
    (tmp_path / "parent.py").write_text(PARENT)
    return str(tmp_path / "parent.py")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_it_dies_with_a_parent_that_is_killed_its_own_children_too_and_not_of_an_interrupt(script: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, script],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    child, worker = map(int, parent.stdout.readline().split())
    try:
        assert os.getpgid(child) == child  # an interrupt from the terminal goes to the parent's group
        assert not is_gone(child)
        parent.kill()
        parent.wait(10)
        deadline = time.monotonic() + 10
        while not (is_gone(child) and is_gone(worker)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert is_gone(child) and is_gone(worker)
    finally:
        parent.stdout.close()
        for process in (child, worker):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def test_it_does_nothing_in_a_process_that_nobody_spawned() -> None:
    before = os.getpgid(0)
    live_and_die_with_parent()
    assert os.getpgid(0) == before

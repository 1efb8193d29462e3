"""One writer at a time, and the kernel lets go of a dead one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bon_server.core.errors import LogLocked
from bon_server.system.lock import WriterLock

HOLD = """
import sys, time
from pathlib import Path
from bon_server.system.lock import WriterLock
lock = WriterLock(Path(sys.argv[1]))
if len(sys.argv) > 2:
    import os
    if os.fork() == 0:
        print(os.getpid(), flush=True)
else:
    print("held", flush=True)
time.sleep(60)
"""


def _holder(folder: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    process, _ = _holder(tmp_path)
    with process:
        with pytest.raises(LogLocked, match=rf"pid {process.pid} on .+ since 20"):
            WriterLock(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    WriterLock(tmp_path).release()


def test_a_forked_child_does_not_keep_the_lock_of_its_killed_parent(tmp_path: Path) -> None:
    process, child = _holder(tmp_path, "fork")
    with process:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        try:
            os.kill(int(child), 0)
            WriterLock(tmp_path).release()
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_the_same_process_is_refused_too_and_the_lock_can_be_taken_again(tmp_path: Path) -> None:
    first = WriterLock(tmp_path)
    with pytest.raises(LogLocked, match=f"pid {os.getpid()}"):
        WriterLock(tmp_path)
    first.release()
    first.release()
    second = WriterLock(tmp_path)
    second.release()
    assert (tmp_path / "writer.lock").stat().st_mode & 0o777 == 0o600

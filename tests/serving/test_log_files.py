"""The log's files deleted, moved, replaced, cut short or overwritten beneath a running server: it ends, and says why.

Nothing is acknowledged once a file that commits go to is not the one at its path, also between two looks at them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.log.read.reader import LogReader
from bon_server.log.seal.sealing import seal
from bon_server.log.spool.spool import Spool
from bon_server.serving.lifecycle.signals import catch_signals, run_until_signalled
from tests.log.records import record
from tests.serving.conftest import Run
from tests.serving.processes import Serve, command, environment
from tests.serving.running import Running, question
from tests.waiting import SOON_S, until

SPOOL, WAL, SHM, LOCK = "spool.sqlite", "spool.sqlite-wal", "spool.sqlite-shm", "writer.lock"


@dataclass(frozen=True)
class Happening:
    """What somebody does to a log."""

    name: str
    does: Callable[[Path], object]
    says: str
    """In the reason why the server ends."""
    at_commit: bool = False
    """The next commit notices, without a look."""
    keeps_all: bool = False
    """What was acknowledged is at a path that the log still has, or had."""


def _another_log(log: Path) -> Path:
    """The folder of another log, whole and closed."""
    folder = log.parent / "another"
    with closing(Spool.open(folder)) as spool:
        spool.append([record("another's")])
    return folder


def _replaced_by_another(log: Path) -> None:
    (_another_log(log) / SPOOL).replace(log / SPOOL)


def _overwritten_with_another(log: Path) -> None:
    """As `cp` does it: the same file with other content."""
    content = (_another_log(log) / SPOOL).read_bytes()
    with (log / SPOOL).open("r+b") as file:
        file.write(content)


def _renamed_over(log: Path) -> None:
    (log / "new").write_bytes(b"no spool")
    (log / "new").replace(log / SPOOL)


def _folder_replaced(log: Path) -> None:
    log.rename(log.parent / "moved")
    shutil.copytree(log.parent / "moved", log)


def _segments_replaced(log: Path) -> None:
    (log / "segments").rename(log.parent / "segments")
    shutil.copytree(log.parent / "segments", log / "segments")


HAPPENINGS = [
    Happening("spool truncated", lambda log: os.truncate(log / SPOOL, 0), f"{SPOOL} was cut short", at_commit=True),
    Happening("spool cut", lambda log: os.truncate(log / SPOOL, 8192), f"{SPOOL} was cut short", at_commit=True),
    Happening("spool deleted", lambda log: (log / SPOOL).unlink(), f"{SPOOL} was deleted", at_commit=True),
    Happening("spool renamed over", _renamed_over, f"{SPOOL} was replaced", at_commit=True),
    Happening("spool replaced by another", _replaced_by_another, f"{SPOOL} was replaced", at_commit=True),
    Happening("spool overwritten with another", _overwritten_with_another, f"{SPOOL} was written to by another"),
    Happening("spool's mode changed", lambda log: (log / SPOOL).chmod(0), f"{SPOOL} was given", keeps_all=True),
    Happening("write-ahead log truncated", lambda log: os.truncate(log / WAL, 0), f"{WAL} was cut", at_commit=True),
    Happening("write-ahead log deleted", lambda log: (log / WAL).unlink(), f"{WAL} was deleted", at_commit=True),
    Happening("index deleted", lambda log: (log / SHM).unlink(), f"{SHM} was deleted", keeps_all=True),
    Happening(
        "folder moved away",
        lambda log: log.rename(log.parent / "moved"),
        "was deleted or moved away",
        at_commit=True,
        keeps_all=True,
    ),
    Happening("folder replaced by a copy", _folder_replaced, "was replaced", at_commit=True, keeps_all=True),
    Happening("folder's mode changed", lambda log: log.chmod(0), "was given", keeps_all=True),
    Happening("lock deleted", lambda log: (log / LOCK).unlink(), f"{LOCK} was deleted", keeps_all=True),
    Happening("lock replaced", lambda log: (log / SPOOL).replace(log / LOCK), f"{SPOOL} was deleted", at_commit=True),
    Happening("segments replaced", _segments_replaced, "segments was replaced", keeps_all=True),
    Happening(
        "segments moved away",
        lambda log: (log / "segments").rename(log.parent / "moved"),
        "segments was deleted or moved away",
    ),
    Happening(
        "sealed feedback moved away",
        lambda log: (log / "feedback").rename(log.parent / "moved"),
        "feedback was deleted or moved away",
    ),
]
each = pytest.mark.parametrize("happening", HAPPENINGS, ids=lambda one: one.name)
at_commit = pytest.mark.parametrize("happening", [one for one in HAPPENINGS if one.at_commit], ids=lambda one: one.name)


async def _with_something_in_it(run: Run) -> Running:
    """A server whose log has records and feedback, sealed and not."""
    running = await run()
    for number in range(6):
        await running.ask(request_id=f"r{number}")
        await running.stub.RecordFeedback(pb.RecordFeedbackRequest(request_id=f"r{number}", name="up", bool_value=True))
        if number == 2:
            await asyncio.to_thread(seal, running.server.spool, 1 << 26, 86_400.0)
    await running.at_rest()
    return running


def _ids(log: Path) -> set[str]:
    with LogReader(log) as reader:
        return {one.request_id for one in reader.records()}


@each
async def test_it_ends_without_being_asked(run: Run, happening: Happening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bon_server.log.spool.upkeep.LOOK_EVERY_S", 0.05)
    running = await _with_something_in_it(run)
    await _looked_at(running, monkeypatch)
    happening.does(running.log)
    await running.health_becomes("NOT_SERVING")
    reason = running.server.broken or ""
    assert happening.says in reason and str(running.log) in reason
    refused = await running.refused(request_id="later")
    assert refused.code is grpc.StatusCode.UNAVAILABLE and str(running.log) not in refused.everything_said
    assert await asyncio.wait_for(run_until_signalled(running.server, catch_signals()), SOON_S) == 1
    if happening.keeps_all:
        for folder in (running.log, running.log.parent / "moved"):
            if folder.exists():
                folder.chmod(0o700)
                (folder / SPOOL).chmod(0o600)
                assert _ids(folder) == {f"r{number}" for number in range(6)}
    else:
        assert "in no segment" in reason or "was sealed" in reason, "what is lost is said"


@at_commit
async def test_nothing_is_acknowledged_that_would_be_lost(
    run: Run, happening: Happening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bon_server.log.spool.upkeep.LOOK_EVERY_S", 3600.0)
    running = await _with_something_in_it(run)
    happening.does(running.log)
    refused = await running.refused(request_id="later")
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    assert happening.says in (running.server.broken or "")


@at_commit
async def test_nor_feedback(run: Run, happening: Happening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bon_server.log.spool.upkeep.LOOK_EVERY_S", 3600.0)
    running = await _with_something_in_it(run)
    happening.does(running.log)
    message = pb.RecordFeedbackRequest(request_id="r5", name="down", bool_value=True)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.stub.RecordFeedback(message)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert running.server.broken is not None


async def _looked_at(running: Running, patch: pytest.MonkeyPatch) -> None:
    """What is there now has been looked at: a folder that has just been made is known."""
    room: Any = running.server.spool._room
    looks = [0]

    def look(probe: object) -> None:
        looks[0] += 1

    with patch.context() as here:
        here.setattr(room, "look", look)
        await until(lambda: looks[0] == 2)


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
async def test_a_second_server_is_refused_without_the_lock_file(tmp_path: Path, replaced: bool) -> None:
    """The folder is locked too; the first server, stopped for the moment, cannot notice by itself."""
    serve = Serve(tmp_path)
    try:
        first = serve()
        lock = first.log / LOCK
        first.signal(signal.SIGSTOP)
        lock.unlink()
        if replaced:
            lock.write_text("pid 1 on another machine\n", encoding="utf-8")
        second = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, *command(tmp_path, "--policy", "synthetic")],
            env=environment(),
            text=True,
            capture_output=True,
            timeout=SOON_S * 4,
            check=False,
        )
        assert second.returncode == 1
        assert f"pid {first.process.pid}" in second.stderr
        first.signal(signal.SIGCONT)
        assert await first.end() == 1
        said = first.process.stdout.read() if first.process.stdout is not None else ""
        assert f"{lock} was" in said
    finally:
        serve.close()


async def test_what_cannot_be_read_is_final(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up of a request that meets damage below SQLite; no look at the files helps here."""
    monkeypatch.setattr("bon_server.log.spool.upkeep.LOOK_EVERY_S", 3600.0)
    running = await _with_something_in_it(run)
    spool = running.server.spool
    spool._writer.checkpoint(at_least_pages=1)
    before = (running.log / SPOOL).stat()
    with (running.log / SPOOL).open("r+b") as file:
        file.write(os.urandom(before.st_size))
    refused = await running.refused(request_id="r5")
    assert refused.code is grpc.StatusCode.UNAVAILABLE
    await running.health_becomes("NOT_SERVING")
    assert SPOOL in (running.server.broken or "")
    assert await asyncio.wait_for(run_until_signalled(running.server, catch_signals()), SOON_S) == 1


async def test_a_database_that_another_holds_is_not(run: Run) -> None:
    running = await run()
    with running.slow_disk():
        call = running.stub.Generate(question(request_id="a"))
        await until(lambda: running.server.spool.queued_records == 1)
    await call
    assert running.server.broken is None and await running.health() == "SERVING"

"""Sealing with a process of its own for the rows: the same files, and a failure like any other when it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest

from bon_server.core.errors import LogError
from bon_server.core.types import Kind
from bon_server.log.seal.process import _ask, _end, seal_page, sealing_process
from bon_server.log.seal.sealing import SealResult, seal, seal_beside_commits
from bon_server.log.spool.database import SPOOL_NAME, StoredRow
from bon_server.log.spool.spool import Spool
from tests.log.preload import ROOT
from tests.log.records import record, scored
from tests.log.seal.test_sealing import BIG, DAY, in_catalog, in_spool, sealed_rows
from tests.log.seal.test_sealing import spool as spool
from tests.waiting import until

SECRET = "the colour of the sixth elephant"


def _fill(folder: Path) -> None:
    """Two dates, an import, a damaged row and one that does not fit; the same writer id each time."""
    with closing(Spool.open(folder)) as opened:
        days = [datetime(2026, 1, 1 + i % 2, tzinfo=UTC) for i in range(50)]
        opened.append(
            [record(f"r{i}", rewards=[0.5, 1.5], created_at=day, tags={"i": str(i)}) for i, day in enumerate(days)]
        )
        opened.append([record("imported", kind=Kind.IMPORT)])
        opened.append([record("unfit", candidates=(scored(0, 1.0, token_ids=(1 << 40,)),))])
    with closing(apsw.Connection(str(folder / SPOOL_NAME))) as database:
        database.execute("UPDATE records SET sha256 = x'00' WHERE ordinal = 3")
        database.execute("UPDATE writer SET id = 'w'")


def test_the_files_are_the_same_bytes(tmp_path: Path) -> None:
    results, files = list[SealResult](), list[dict[str, bytes]]()
    for name, sealing in {"here": seal, "beside": seal_beside_commits}.items():
        folder = tmp_path / name
        _fill(folder)
        with closing(Spool.open(folder)) as opened:
            results.append(sealing(opened, BIG, DAY))
            assert {opened.latest("", one) is not None for one in ("r1", "imported")} == {True}
        files.append({one.file: (folder / one.file).read_bytes() for one in in_catalog(folder)})
        assert in_spool(folder) == [3, 52]
    assert results[0] == results[1] and (results[0].records, results[0].left) == (50, 2)
    assert files[0] == files[1] and len(files[0]) == 3


def test_a_process_that_is_killed_leaves_everything_in_the_spool(
    tmp_path: Path,
    spool: Spool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spool.append([record(f"r{i}") for i in range(40)])
    asked = 0

    def kill_at_the_second(process: subprocess.Popen[bytes], request: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 2:
            process.kill()
            process.wait()
        return _ask(process, request)

    with monkeypatch.context() as patch:
        patch.setattr("bon_server.log.seal.process._ask", kill_at_the_second)
        with pytest.raises(LogError, match="exit code -9"):
            seal_beside_commits(spool, BIG, DAY)
    assert in_spool(tmp_path) == list(range(1, 41)) and in_catalog(tmp_path) == []
    assert not [path for path in (tmp_path / "segments").rglob("*") if path.is_file()]
    assert seal_beside_commits(spool, BIG, DAY).records == 40
    assert sealed_rows(tmp_path) == [(f"r{i}", i + 1) for i in range(40)]


def test_it_does_not_outlive_a_failed_sealing(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.append([record()])
    ended = list[subprocess.Popen[bytes]]()

    def noting(process: subprocess.Popen[bytes]) -> None:
        _end(process)
        ended.append(process)

    monkeypatch.setattr("bon_server.log.seal.process._end", noting)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bon_server.log.segments.files._Growing.flush", full)
    with pytest.raises(OSError, match="No space"):
        seal_beside_commits(spool, BIG, DAY)
    assert [process.returncode for process in ended] == [0]


def test_it_is_deaf_to_signals_for_the_server_and_tells_no_content(capfd: pytest.CaptureFixture[str]) -> None:
    with sealing_process() as make_page:
        assert make_page([], 0) == ([], [], [])  # by now it has started
        (child,) = _children()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(child, number)
        assert make_page([], 0) == ([], [], [])
        with pytest.raises(LogError, match="exit code 1") as error:
            make_page([SECRET], 0)  # type: ignore[list-item]
    assert SECRET not in str(error.value) + "".join(capfd.readouterr())


def test_one_that_is_stopped_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with sealing_process() as make_page:
        make_page([], 0)
        (child,) = _children()
        os.kill(child, signal.SIGSTOP)
        monkeypatch.setattr("bon_server.log.seal.process._ANSWER_S", 0.1)
        # More than a pipe holds: neither sending nor receiving may wait for ever.
        with pytest.raises(LogError, match="exit code -9"):
            make_page([StoredRow(1, b"", bytes(1 << 20))], 0)
    assert _is_gone(child)


@pytest.mark.parametrize("garbage", ["Hello, world!", "\\001\\000\\000\\000\\000\\000\\000\\000x", "\\377" * 8])
def test_garbage_is_a_failure_like_any_other(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch, garbage: str
) -> None:
    spool.append([record(SECRET)])
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nprintf '{garbage}'\nexec cat > /dev/null\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr("bon_server.log.seal.process._ANSWER_S", 1.0)
    with pytest.raises(LogError, match="process that makes rows") as error:
        seal_beside_commits(spool, BIG, DAY)
    assert SECRET not in str(error.value) and in_spool(tmp_path) == [1]


@pytest.mark.parametrize("lost", ["batches", "sealed"])
def test_a_row_that_became_none_is_not_dropped(tmp_path: Path, spool: Spool, lost: str) -> None:
    spool.append([record(f"r{i}") for i in range(3)])
    with pytest.raises(LogError, match="rows 1 to 3 of the spool did not all become rows of segments"):
        seal(spool, BIG, DAY, lambda rows, until_us: seal_page(rows, until_us)._replace(**{lost: []}))
    assert in_spool(tmp_path) == [1, 2, 3] and in_catalog(tmp_path) == []


def test_it_ends_when_its_parent_is_killed() -> None:
    command = """
import time
from tests.log.seal.test_sealing_process import _children
from bon_server.log.seal.process import sealing_process
with sealing_process() as make_page:
    make_page([], 0)
    print(*_children(), flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", command], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    asyncio.run(until(partial(_is_gone, child)))


def _children() -> list[int]:
    """The processes of sealings that this process started and that have not ended."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _is_ours(path)]


def _is_ours(process: Path) -> bool:
    try:
        parent = _stat(process)[1]
        return int(parent) == os.getpid() and b"bon_server.log.seal.process" in (process / "cmdline").read_bytes()
    except OSError:
        return False


def _is_gone(process: int) -> bool:
    try:
        return _stat(Path(f"/proc/{process}"))[0] == "Z"
    except OSError:
        return True


def _stat(process: Path) -> list[str]:
    """State, parent and more, see proc(5)."""
    return (process / "stat").read_text().rpartition(")")[2].split()

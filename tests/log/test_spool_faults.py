"""What the writer does when disk and machine fail: in real processes, with the faults below SQLite."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bon_server.log.reader import LogReader
from bon_server.log.spool import Spool

ROOT = Path(__file__).parents[2]
KILLS = 20


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared library made of `faults.c`."""
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, timeout=60)
    return library


def _experiment(faults: Path, name: str, folder: Path, synchronous: str = "FULL") -> Any:
    command = [sys.executable, "-m", "tests.log.faulty_writer", name, str(folder), synchronous]
    environment = os.environ | {"LD_PRELOAD": str(faults)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, timeout=60)
    return json.loads(done.stdout)


def _request_ids(folder: Path) -> list[str]:
    with LogReader(folder) as reader:
        return [one.request_id for one in reader.records()]


def test_every_acknowledgement_waits_for_a_sync_and_a_group_shares_one(faults: Path, tmp_path: Path) -> None:
    syncs = _experiment(faults, "count", tmp_path)
    assert min(syncs["each"]) >= 1
    assert 1 <= syncs["hundred"] <= 10


def test_counting_syncs_would_notice_their_absence(faults: Path, tmp_path: Path) -> None:
    assert _experiment(faults, "count", tmp_path, synchronous="OFF") == {"each": [0] * 10, "hundred": 0}


def test_a_failed_sync_is_final(faults: Path, tmp_path: Path) -> None:
    assert _experiment(faults, "sync", tmp_path) == {
        "before": "ok",
        "during": ["Unavailable"] * 3,
        "after": "Unavailable",
        "failures": 1,
        "seen": True,
    }
    there = _request_ids(tmp_path)
    assert there in (["before"], ["before", "during0"]), "nothing was written after the failed sync"


def test_a_full_disk_fails_commits_until_there_is_room(faults: Path, tmp_path: Path) -> None:
    assert _experiment(faults, "full", tmp_path) == {
        "before": "ok",
        "during": ["LogFull"] * 4,
        "after": ["ok"] * 3,
        "failures": 0,
    }
    assert _request_ids(tmp_path) == ["before", "after0", "after1", "after2"]


def _commit_for(folder: Path, run: str, seconds: float) -> dict[str, int]:
    """Starts a committing process, kills it, and returns what it had had acknowledged, with ordinals."""
    command = [sys.executable, "-m", "tests.log.committing", str(folder), run]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        lines = (first + process.stdout.read()).decode().splitlines(keepends=True)
    pairs = [line.split() for line in lines if line.endswith("\n")]
    return {request_id: int(ordinal) for request_id, ordinal in pairs}


@pytest.mark.slow
def test_kill_minus_nine_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    pauses = random.Random(7)
    acknowledged: dict[str, int] = {}
    recovered_frames = 0
    for run in range(KILLS):
        acknowledged |= _commit_for(tmp_path, str(run), pauses.uniform(0, 0.2))
        spool = Spool.open(tmp_path)
        recovered_frames += spool.recovery.wal_frames
        spool.close()
        with LogReader(tmp_path) as reader:
            there = [(one.request_id, one.ordinal) for one in reader.records() if len(one.candidates) == 16]
        assert len({request_id for request_id, _ in there}) == len(there)
        assert acknowledged.items() <= set(there)
        assert spool.recovery.records == len(there)
    assert recovered_frames > 0, "no kill met a busy writer"


@pytest.mark.slow
def test_a_reader_in_another_process_always_sees_a_prefix(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.log.committing", str(tmp_path), "run"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seen: list[str] = []
        end_s = time.monotonic() + 3
        while time.monotonic() < end_s:
            os.set_blocking(process.stdout.fileno(), False)
            process.stdout.read()
            ids = _request_ids(tmp_path)
            assert ids[: len(seen)] == seen and len(set(ids)) == len(ids)
            assert set(ids) == {f"run-{i}" for i in range(len(ids))}
            seen = ids
        process.kill()
    assert len(seen) > 50

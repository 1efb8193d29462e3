"""What the writer does when disk and machine fail: in real processes, with the faults below SQLite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bon_server.core.types import Durability
from bon_server.log.read.reader import LogReader
from tests.log.preload import ROOT, compiled, run_module


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared library made of `faults.c`."""
    return compiled("faults", tmp_path_factory.mktemp("faults"))


def _experiment(faults: Path, name: str, folder: Path, *more: str) -> Any:
    return json.loads(run_module(faults, "tests.log.spool.faulty_writer", name, folder, *more))


def _request_ids(folder: Path) -> list[str]:
    with LogReader(folder) as reader:
        return [one.request_id for one in reader.records()]


@pytest.mark.parametrize("durability", [Durability.FSYNC, Durability.GROUP])
def test_no_acknowledgement_is_ahead_of_its_sync_and_a_group_shares_one(
    faults: Path, tmp_path: Path, durability: Durability
) -> None:
    seen = _experiment(faults, "count", tmp_path, durability)
    assert set(seen["ahead"]) == {0}
    groups = len(seen["ahead"])
    assert 20 <= groups <= 31
    assert groups <= seen["syncs"] <= groups + 3, "one each; the file's folder and header have theirs"
    assert seen["counted"] == {"commit": groups}


def test_durability_async_is_ahead_of_its_sync_but_not_for_long(faults: Path, tmp_path: Path) -> None:
    seen = _experiment(faults, "count", tmp_path, Durability.ASYNC)
    assert min(seen["ahead"]) >= 0 and max(seen["ahead"]) > 0
    assert seen["unsynced_later"] == 0
    assert seen["syncs"] < len(seen["ahead"]) / 2


def test_counting_syncs_would_notice_their_absence(faults: Path, tmp_path: Path) -> None:
    seen = _experiment(faults, "count", tmp_path, Durability.FSYNC, "OFF")
    assert min(seen["ahead"]) > 0 and seen["syncs"] == 0


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


@pytest.mark.parametrize("experiment", ["background", "checkpoint"])
def test_a_failed_sync_beside_the_commits_is_final_too(faults: Path, tmp_path: Path, experiment: str) -> None:
    seen = _experiment(faults, experiment, tmp_path)
    assert seen == {"before": "ok", "after": "Unavailable", "failures": 1}
    assert _request_ids(tmp_path) == ["first", "before"]


def test_a_full_disk_fails_commits_until_there_is_room(faults: Path, tmp_path: Path) -> None:
    assert _experiment(faults, "full", tmp_path) == {
        "before": "ok",
        "during": ["LogFull"] * 4,
        "after": ["ok"] * 3,
        "failures": 0,
    }
    assert _request_ids(tmp_path) == ["before", "after0", "after1", "after2"]


@pytest.mark.parametrize("kills", [100, pytest.param(1_000, marks=[pytest.mark.slow, pytest.mark.long])])
def test_kill_minus_nine_loses_nothing_that_was_acknowledged(tmp_path: Path, kills: int) -> None:
    command = [sys.executable, "-m", "tests.log.spool.killed_writer", str(tmp_path / "log"), str(kills), "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode()
    seen = json.loads(done.stdout)
    assert seen["acknowledged"] <= seen["records"]
    assert seen["acknowledged"] > kills, "writers must have had time to write"
    assert seen["unclean_ends"] > kills / 10, "kills must have met busy writers"


@pytest.mark.slow
def test_a_reader_in_another_process_always_sees_a_prefix(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.log.spool.committing", str(tmp_path), "run"]
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

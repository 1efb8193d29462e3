"""`bon bench soak` from end to end: against its own server, one that dies, and one that runs already."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bon_server.log.read.reader import LogReader
from tests.conftest import StartServer
from tests.serving.processes import environment
from tests.waiting import until

pytestmark = pytest.mark.slow
LIMIT_S = 200.0
SHORT = ("--minutes", "0.02", "--concurrency", "8")
OFTEN = {"unary", "stream", "budget", "cancelled", "abandoned stream", "short deadline", "score", "repeated"}
"""Kinds of calls that a few hundred have among them, but for one run in thousands."""


def soak(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The command, with `folder` for its temporary files."""
    return subprocess.Popen(
        [sys.executable, "-m", "bon_server.cli", "bench", "soak", "--json", *words],
        env={**environment(), "TMPDIR": str(folder)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def told(command: subprocess.Popen[str], code: int = 0) -> tuple[dict[str, Any], str]:
    """Its document and what it said meanwhile."""
    document, said = command.communicate(timeout=LIMIT_S)
    assert command.returncode == code, document + said
    return json.loads(document), said


def verdicts(document: dict[str, Any]) -> dict[str, bool | None]:
    """By name of the check."""
    return {check["name"]: check["passed"] for check in document["checks"]}


def logged(log: Path) -> int:
    """Records so far."""
    with LogReader(log) as reader:
        return reader.last_ordinal


def left_out(document: dict[str, Any]) -> dict[str, str]:
    """What was not judged, and why."""
    return {check["name"]: check["detail"] for check in document["checks"] if check["passed"] is None}


def test_a_sound_server_passes(tmp_path: Path) -> None:
    document, said = told(soak(tmp_path, "--minutes", "0.06"))
    judged = verdicts(document)
    assert judged.pop("memory") is None, "too short for a slope"
    assert set(judged.values()) == {True}
    assert {"descriptors", "threads", "tasks", "permits held", "codes", "missing from the log"} < judged.keys()
    assert document["codes"].keys() >= OFTEN
    assert document["codes"]["cancelled"]["CANCELLED"] and document["replayed"] and document["feedback"]
    assert "calls" in said and "descriptors" in said, "progress"
    assert list(tmp_path.iterdir()) == [], "nothing failed, so nothing is kept"


def test_a_server_that_dies_is_a_failure(tmp_path: Path) -> None:
    command = soak(tmp_path, "--minutes", "5")
    give_up_s = time.monotonic() + 60
    while not (ready := list(tmp_path.glob("bon-soak-*/ready.json"))):
        assert command.poll() is None and time.monotonic() < give_up_s
        time.sleep(0.05)
    time.sleep(1.0)
    os.kill(json.loads(ready[0].read_bytes())["pid"], signal.SIGKILL)
    document, _ = told(command, code=1)
    judged = verdicts(document)
    assert judged["acknowledged"], "it was killed before it had answered anything"
    assert judged["server"] is judged["codes"] is judged["tasks, permits, calls"] is False
    assert judged["missing from the log"] is judged["twice in the log"] is True, "it lost nothing all the same"
    assert document["folder"] == str(ready[0].parent), "kept for whoever looks for the reason"


async def test_a_server_that_runs_already(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server(**{"policy.model": "synthetic:tokens_per_s=400"})
    words = ["--target", server.address, *SHORT, "--metrics", server.metrics_address, "--log", str(tmp_path / "log")]
    document, _ = await asyncio.to_thread(lambda: told(soak(tmp_path, *words)))
    judged = verdicts(document)
    assert judged["codes"] and judged["acknowledged"] and judged["same answer again"]
    assert judged["tasks"] and judged["permits held"] and judged["missing from the log"] and judged["log verify"]
    assert left_out(document) == {"memory, descriptors, threads": "the target is no process of this command"}


async def test_a_target_that_goes_away_is_a_failure(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server(**{"policy.model": "synthetic:tokens_per_s=400"})
    command = soak(tmp_path, "--target", server.address, *SHORT)
    await until(lambda: logged(tmp_path / "log") > 0)
    await server.drain(0)
    await server.stop()
    document, _ = await asyncio.to_thread(told, command, 1)
    judged = verdicts(document)
    assert judged["server"] is False
    assert judged["codes"], "others may keep a target busy: UNAVAILABLE alone says nothing"
    assert left_out(document) == {
        "tasks, permits, calls": "give --metrics the target's",
        "log": "give --log the folder of the target's log",
    }


def test_nobody_there_is_told_in_a_sentence(tmp_path: Path) -> None:
    command = soak(tmp_path, "--target", "127.0.0.1:1", *SHORT)
    document, said = command.communicate(timeout=LIMIT_S)
    assert (command.returncode, document) == (1, "")
    assert said.startswith("bon: UNAVAILABLE") and said.count("\n") == 1

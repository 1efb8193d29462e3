"""`bon rescore` broken off: what is done stays, and the same command goes on with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bon_server.core.errors import LogLocked, RewardFailed
from bon_server.log.scores.files import FOLDER, score_files
from bon_server.log.verify.verify import verify
from bon_server.models.reward.synthetic import SyntheticReward
from bon_server.offline.rescore import rescore as module
from tests.offline.rescore.rescoring import (
    commit,
    expected,
    half_sealed,
    joined,
    rescored,
    sampled,
    score_bytes,
    score_rows,
)


def test_a_failing_model_ends_it_and_what_is_done_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_REQUESTS", 8)
    log = commit(tmp_path / "log", sampled(20))
    right, calls = SyntheticReward.score, 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 30:
            raise RewardFailed("out of memory")
        return right(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SyntheticReward, "score", failing)
        with pytest.raises(RewardFailed, match="memory"):
            rescored(log)
    assert 0 < len(score_rows(log)) < 20
    rescored(log)
    assert joined(log) == expected(log)


def test_one_at_a_time_under_a_name(tmp_path: Path) -> None:
    log = commit(tmp_path / "log", sampled(1))
    script = "import sys; from bon_server.cli import main; sys.exit(main())"
    words = ["rescore", "--log", str(log), "--name", "new", "--reward", "synthetic:seconds=30"]
    with subprocess.Popen([sys.executable, "-c", script, *words], stderr=subprocess.DEVNULL) as other:
        try:
            deadline = time.monotonic() + 60
            while not (log / FOLDER / "new" / "model.json").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            with pytest.raises(LogLocked, match=f"pid {other.pid}"):
                rescored(log)
            rescored(log, name="another")
        finally:
            other.kill()


CHUNKS = """
import sys
from bon_server.cli import main
from bon_server.offline.rescore import rescore
rescore.CHUNK_REQUESTS = 16
sys.exit(main())
"""


@pytest.mark.slow
def test_killed_anywhere_the_same_command_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """kill −9 again and again, each time a little later, until the command comes to its end."""
    log = half_sealed(tmp_path / "log")
    commit(log, sampled(60, first=50))

    def command(name: str, seconds: float) -> list[str]:
        words = ["rescore", "--log", str(log), "--reward", f"synthetic:seconds={seconds}", "--name", name, "--json"]
        return [sys.executable, "-c", CHUNKS, *words]

    whole = subprocess.run(command("whole", 0.2), check=True, capture_output=True, timeout=120)
    kills = 0
    while True:
        process = subprocess.Popen(command("killed", 0.2), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        known = len(score_files(log, "killed"))
        deadline = time.monotonic() + 100
        while process.poll() is None and time.monotonic() < deadline:
            if len(score_files(log, "killed")) >= known + 2:
                time.sleep(0.03 * kills)
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
        out, _ = process.communicate(timeout=100)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
    assert kills >= 3
    wanted = {name.replace("/whole/", "/"): data for name, data in score_bytes(log).items() if "/whole/" in name}
    made = {name.replace("/killed/", "/"): data for name, data in score_bytes(log).items() if "/killed/" in name}
    wanted.pop("scores/model.json"), made.pop("scores/model.json")
    assert made == wanted and len(made) == 7
    last, first = json.loads(out), json.loads(whole.stdout)
    assert last["by_status"] == first["by_status"] and last["already"] + last["scored"] == first["scored"]
    assert joined(log, "killed") == expected(log) and verify(log)["ok"]

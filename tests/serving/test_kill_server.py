"""What a client was told is on disk and stays the answer, however often the whole server is killed under load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [10, pytest.param(1_000, marks=pytest.mark.long)])
def test_killed_servers_lose_nothing_and_double_nothing(
    tmp_path: Path, kills: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "tests.serving.killed_server", str(tmp_path), str(kills), "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=3600)
    assert done.returncode == 0, done.stderr.decode()
    seen = json.loads(done.stdout)
    with capsys.disabled():
        sys.stdout.write(f"\n{json.dumps(seen)}\n")
    assert seen["kills"] == kills
    assert seen["found"] == seen["acknowledged"] > kills, "all that was in doubt was asked again, and answered"
    assert seen["in_doubt"] > kills, "kills must have met clients that waited"
    assert seen["replayed_acknowledged"] >= 20

"""Clients' acknowledgements hold, however often the whole server is killed: answers, feedback, published copies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bon_server.core.types import Durability

ROOT = Path(__file__).parents[2]
NIGHTLY_KILLS = int(os.environ.get("BON_TEST_KILLS", "0"))
"""In all, for the long test; `make test-nightly` sets it."""
SECONDS_A_KILL = 10
"""On a machine with other things to do."""


@pytest.mark.slow
@pytest.mark.parametrize("kills", [12, pytest.param(NIGHTLY_KILLS or 300, marks=pytest.mark.long)])
def test_killed_servers_lose_nothing_and_double_nothing(kills: int, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "tests.serving.killed_server", str(kills), "7"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300 + SECONDS_A_KILL * kills)
    assert done.returncode == 0, done.stderr.decode()
    seen = json.loads(done.stdout)
    with capsys.disabled():
        sys.stdout.write(f"\n{json.dumps(seen)}\n")
    assert seen["kills"] == kills == sum(seen["kills_by_durability"].values())
    assert set(seen["kills_by_durability"]) == set(Durability)
    assert seen["acknowledged"] > kills and seen["feedback"] > 0
    assert seen["in_doubt"] > kills, "kills must have met clients that waited"
    assert seen["replayed_acknowledged"] >= 20
    assert seen["segments_published"] > 0
    if kills >= 300:
        assert seen["killed_while_sealing"] > 0 and seen["killed_while_starting"] > 0
        assert seen["segments_expired"] > 0 and seen["in_expired_files"] > 0

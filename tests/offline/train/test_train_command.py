"""`bon train`: what is printed, and what the exit code says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny_models
from tests.offline.train.sets import make_log, select_from


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bon_server.cli", "train", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    policy = tiny_models.save_policy(tmp_path / "policy")
    out = tmp_path / "new" / "tuned"
    data = select_from(make_log(tmp_path / "log"), tmp_path / "set", "trl-tokens")
    words = ["--data", data, "--policy", policy, "--out", out, "--batch-size", 8, "--epochs", 1, "--json"]
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((out / "training.json").read_bytes())
    warned, *steps = done.stderr.splitlines()
    assert warned.startswith("bon: off-policy: ")
    assert [line.split(",")[0] for line in steps] == [f"bon: step {number} of 3" for number in (1, 2, 3)]


def test_a_wrong_option_is_a_usage_error(tmp_path: Path) -> None:
    wrong = run("--data", tmp_path, "--policy", tmp_path, "--out", tmp_path / "out", "--lr-scheduler-type", "steep")
    assert (
        wrong.returncode == 2
        and "--lr-scheduler-type: 'steep' given; allowed are linear, cosine, constant" in wrong.stderr
    )
    assert not wrong.stdout and not (tmp_path / "out").exists()

"""`bon log import`: what is printed, and what the exit code says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.offline.importing.import_files import WRITERS, Sample, write_lines


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bon_server.cli", "log", "import", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [WRITERS["verl"](Sample("q", f"a{i}", float(i))) for i in range(4)]
    good, mixed = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    write_lines(good, lines[:2])
    write_lines(mixed, [*lines[2:], {"secret": 1}])
    report = tmp_path / "bad.jsonl"
    arguments = ["--log", tmp_path / "log", "--format", "verl", "--reward-column", "acc=2", "--json"]
    done = run(good, mixed, *arguments, "--rejected", report)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    counts = [result[name] for name in ("lines", "imported", "already_there", "rejected", "requests", "candidates")]
    assert counts == [5, 4, 0, 1, 1, 4]
    assert "1 lines were rejected" in done.stderr and str(report) in done.stderr and "secret" not in done.stderr
    assert json.loads(report.read_text())["line"] == 3
    hopeless = run(write_lines(tmp_path / "3.jsonl", [{"secret": 1}]), *arguments)
    assert hopeless.returncode == 1 and json.loads(hopeless.stdout)["rejected"] == 1
    unknown = run(good, "--log", tmp_path / "log", "--format", "csv")
    assert unknown.returncode == 2 and "allowed are grouped, openrlhf" in unknown.stderr
    missing = run(tmp_path / "nowhere", "--log", tmp_path / "log")
    assert missing.returncode == 1 and "nowhere" in missing.stderr

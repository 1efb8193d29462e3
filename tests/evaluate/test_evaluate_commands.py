"""`bon evaluate …`: what is printed, and what the exit code says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluate.logs import imported, made_lines


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bon_server.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imported(tmp_path_factory.mktemp("log"), made_lines(30))


@pytest.mark.parametrize(
    ("arguments", "keys", "heading"),
    [
        (["curve", "--value", "gold", "--extrapolate", "16"], {"prompts", "curve"}, "gold of the best"),
        (["kl"], {"answers", "reference"}, "plug-in"),
        (["headroom", "--value", "gold"], {"which_n", "weeks", "oracle_gap"}, "gain of the last sample"),
    ],
)
def test_tables_and_documents(log: Path, arguments: list[str], keys: set[str], heading: str) -> None:
    as_json = run("evaluate", *arguments, "--log", log, "--json")
    assert as_json.returncode == 0, as_json.stderr
    assert keys <= json.loads(as_json.stdout).keys()
    table = run("evaluate", *arguments, "--log", log)
    assert table.returncode == 0 and heading in table.stdout, table.stderr


def test_compare(log: Path, tmp_path: Path) -> None:
    other = imported(tmp_path, made_lines(30, seed=9))
    as_json = run("evaluate", "compare", log, other, "--value", "gold", "--json")
    assert json.loads(as_json.stdout)["prompts"] == 30
    assert "B's best beats" in run("evaluate", "compare", log, other).stdout


def test_names_are_printed_as_they_are(tmp_path: Path) -> None:
    lines = [one | {"scores": {"a[b]:smile:[/c]": one["scores"]["gold"]}} for one in made_lines(3)]
    table = run("evaluate", "curve", "--log", imported(tmp_path, lines), "--value", "a[b]:smile:[/c]")
    assert table.returncode == 0 and "a[b]:smile:[/c]" in table.stdout, table.stderr


def test_exit_codes(log: Path, tmp_path: Path) -> None:
    assert run("evaluate", "curve", "--log", tmp_path / "nowhere").returncode == 1
    unknown = run("evaluate", "curve", "--log", log, "--kl-method", "guess")
    assert unknown.returncode == 2 and "allowed are bound, exact-plugin, winner-probability" in unknown.stderr
    nothing = run("evaluate", "curve", "--log", log, "--value", "silver")
    assert nothing.returncode == 1 and "there are: gold" in nothing.stderr

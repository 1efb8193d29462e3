"""`bon log …` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bon_server.core.errors import ConfigError
from bon_server.log.segments.files import listed
from bon_server.log.spool.spool import Spool
from tests.command import run_bon
from tests.log.records import record

RECORDS = 6


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """A log with records in its spool."""
    with closing(Spool.open(tmp_path / "log")) as spool:
        spool.append([record(f"r{i}") for i in range(RECORDS)])
    yield tmp_path / "log"


def _bon(*words: str) -> Any:
    return run_bon("log", *words)


def _json(*words: str) -> Any:
    result = _bon(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_seal_then_snapshot_then_verify(log: Path) -> None:
    sealed = _json("seal", "--log", str(log))
    assert (sealed["records"], sealed["left"], len(sealed["files"])) == (RECORDS, 0, 1)
    snapshot = _json("snapshot", "first", "--log", str(log))
    assert [one["rows"] for one in snapshot["segments"]] == [RECORDS]
    report = _json("verify", "--log", str(log))
    assert (report["ok"], report["problems"], report["records"]) == (True, [], RECORDS)
    stats = _json("stats", "--log", str(log))
    assert (stats["requests"], stats["unsealed"], stats["segments"]) == (RECORDS, 0, 1)
    assert _json("seal", "--log", str(log))["records"] == 0


def test_seal_names_who_holds_the_log(log: Path) -> None:
    with closing(Spool.open(log)):
        command = [sys.executable, "-m", "bon_server.cli", "log", "seal", "--log", str(log)]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1 and "pid " in refused.stderr and "Traceback" not in refused.stderr


def test_seal_makes_no_log(tmp_path: Path) -> None:
    result = _bon("seal", "--log", str(tmp_path / "nowhere"))
    assert result.exit_code == 1 and "holds no log" in result.stderr
    assert not (tmp_path / "nowhere").exists()


def test_one_line_per_candidate(log: Path) -> None:
    _json("seal", "--log", str(log))
    lines = [
        json.loads(line) for line in _bon("records", "--log", str(log), "--long", "--limit", "2").stdout.splitlines()
    ]
    assert [(line["request_id"], line["index"], line["reward"]) for line in lines] == [
        ("r0", 0, 0.5),
        ("r0", 1, 0.25),
        ("r1", 0, 0.5),
        ("r1", 1, 0.25),
    ]
    assert "candidates" not in lines[0] and lines[0]["request_error"] is None


def test_damage_is_reported_and_left_out_only_when_asked(log: Path) -> None:
    _json("seal", "--log", str(log))
    (file,) = listed(log)
    (log / file).write_bytes((log / file).read_bytes()[:-9])
    broken = _bon("verify", "--log", str(log), "--json")
    assert broken.exit_code == 1
    report = json.loads(broken.stdout)
    assert not report["ok"] and {one["file"] for one in report["problems"]} == {file}
    for verb in ("records", "stats"):
        assert _bon(verb, "--log", str(log)).exit_code == 1
        skipping = _bon(verb, "--log", str(log), "--skip-damaged")
        assert skipping.exit_code == 0 and file in skipping.stderr


def test_publish_copies_what_is_sealed(log: Path, tmp_path: Path) -> None:
    table = tmp_path / "table"
    words = ("publish", "--log", str(log), "--to", table.as_uri())
    assert _json(*words) == {"published": 0, "removed": 0, "waiting": 0, "failure": None}
    _json("seal", "--log", str(log))
    assert _json(*words)["published"] == 1
    assert _json("stats", "--log", str(table))["requests"] == RECORDS
    assert _json("verify", "--log", str(table))["ok"]
    (file,) = listed(table)
    (table / file).write_bytes(b"other")
    elsewhere = _bon("publish", "--log", str(log), "--to", f"{table.as_uri()}/", "--json")
    assert elsewhere.exit_code == 0, "the same place"
    refused = _bon("publish", "--log", str(log), "--to", "nowhere")
    assert refused.exit_code != 0 and isinstance(refused.exception, ConfigError)


def test_publish_names_what_it_cannot(log: Path, tmp_path: Path) -> None:
    _json("seal", "--log", str(log))
    (file,) = listed(log)
    taken = tmp_path / "table" / file
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"other")
    failed = _bon("publish", "--log", str(log), "--to", (tmp_path / "table").as_uri())
    assert failed.exit_code == 1 and file in failed.stderr and taken.read_bytes() == b"other"

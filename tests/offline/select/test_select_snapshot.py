"""`bon select --snapshot`: the same training set for ever, whatever is logged later."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bon_server.core.errors import LogError
from bon_server.core.selection import OfflineRule
from bon_server.core.types import Message
from bon_server.log.read.snapshot import make_snapshot
from bon_server.log.remove.erase import erase
from bon_server.log.remove.rewrite import Match
from bon_server.log.segments.files import listed
from bon_server.log.spool.spool import Spool
from bon_server.offline.select.select import SelectOptions, select
from tests.command import run_bon
from tests.log.records import record
from tests.log.seal.test_sealing import flip, seal


def _serve(log: Path, names: str) -> None:
    """One prompt for each letter, sealed, and the rewards of a name rise with its letter."""
    with closing(Spool.open(log)) as spool:
        spool.append([record(name, (ord(name), 0.0), prompt_messages=(Message("user", name),)) for name in names])
        seal(spool)


def _options(log: Path, out: str, **options: Any) -> SelectOptions:
    return SelectOptions((log,), OfflineRule.TOP_K_OVERALL, log.parent / out, k=2, **options)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log with a snapshot, `first`, of three prompts."""
    _serve(tmp_path / "log", "abc")
    make_snapshot(tmp_path / "log", "first")
    return tmp_path / "log"


def test_what_is_logged_later_changes_nothing(log: Path) -> None:
    before = select(_options(log, "before", snapshot="first"))
    _serve(log, "xyz")
    with closing(Spool.open(log)) as spool:
        spool.append([record("unsealed", (500.0,))])
    after = select(_options(log, "after", snapshot="first"))
    assert before == after and after["counts"]["requests"] == 3 and after["snapshot"] == "first"
    assert _files(log.parent / "before") == _files(log.parent / "after")
    snapshot = json.loads((log / "snapshots" / "first.json").read_text())
    assert [(one["file"], one["sha256"]) for one in after["inputs"]] == [
        (str(log / one["file"]), one["sha256"]) for one in snapshot["segments"]
    ]
    everything = select(_options(log, "everything"))
    assert everything["counts"]["requests"] == 7 and "snapshot" not in everything


def test_another_snapshot_is_another_selection(log: Path) -> None:
    make_snapshot(log, "second")
    select(_options(log, "out", snapshot="first"))
    with pytest.raises(LogError, match=r"another selection \(its snapshot\)"):
        select(_options(log, "out", snapshot="second"))


def test_every_log_needs_a_snapshot_of_that_name(log: Path, tmp_path: Path) -> None:
    _serve(tmp_path / "other", "de")
    logs = (log, tmp_path / "other")
    options = SelectOptions(logs, OfflineRule.BEST_PER_PROMPT, tmp_path / "out", snapshot="first")
    with pytest.raises(LogError, match=r"other/snapshots/first\.json cannot be read"):
        select(options)
    make_snapshot(tmp_path / "other", "first")
    _serve(tmp_path / "other", "fg")
    assert select(options)["counts"]["requests"] == 5


def test_what_has_changed_is_not_chosen_from(log: Path) -> None:
    flip(log / next(listed(log)), "request_id")
    with pytest.raises(LogError, match="has changed since it was pinned"):
        select(_options(log, "out", snapshot="first"))
    assert not (log.parent / "out").exists()


def test_as_a_user_types_it(log: Path) -> None:
    _serve(log, "xyz")
    common = ["--log", str(log), "--snapshot", "first"]
    words = ["select", *common, "--rule", "top-k-overall", "-k", "2", "--out", str(log.parent / "out"), "--json"]
    result = run_bon(*words)
    assert result.exit_code == 0 and json.loads(result.stdout)["snapshot"] == "first", result.output
    lines = run_bon("log", "records", *common).stdout.splitlines()
    assert [json.loads(line)["request_id"] for line in lines] == list("abc")
    erase(log, Match(request_id="b"))
    refused = run_bon(*words)
    assert isinstance(refused.exception, LogError) and "is stale" in str(refused.exception)

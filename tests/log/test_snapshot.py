"""Snapshots: a name for sealed files."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from bon_server.errors import ConfigError, LogError
from bon_server.log.snapshot import make_snapshot, read_snapshot
from bon_server.log.spool import Spool
from bon_server.log.whole_file import sha256_of
from tests.log.records import record
from tests.log.test_sealing import seal


def _sealed(folder: Path, names: str) -> None:
    with closing(Spool.open(folder)) as spool:
        spool.append([record(name) for name in names])
        seal(spool)


def test_a_snapshot_lists_the_segments_with_their_digests(tmp_path: Path) -> None:
    _sealed(tmp_path, "abc")
    _sealed(tmp_path, "de")
    snapshot = make_snapshot(tmp_path, "first")
    assert [one["rows"] for one in snapshot["segments"]] == [3, 2]
    for one in snapshot["segments"]:
        assert one["sha256"] == sha256_of(tmp_path / one["file"])
        assert one["bytes"] == (tmp_path / one["file"]).stat().st_size
    path = tmp_path / "snapshots" / "first.json"
    assert json.loads(path.read_bytes()) == snapshot == read_snapshot(path)


def test_a_name_means_the_same_for_ever(tmp_path: Path) -> None:
    _sealed(tmp_path, "abc")
    first = make_snapshot(tmp_path, "first")
    assert make_snapshot(tmp_path, "first") == first
    _sealed(tmp_path, "de")
    with pytest.raises(LogError, match=r"first\.json is a snapshot of other segments"):
        make_snapshot(tmp_path, "first")
    assert read_snapshot(tmp_path / "snapshots" / "first.json") == first
    assert len(make_snapshot(tmp_path, "second")["segments"]) == 2


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 101])
def test_names_that_are_no_file_names_are_refused(tmp_path: Path, name: str) -> None:
    _sealed(tmp_path, "a")
    with pytest.raises(ConfigError, match="name: "):
        make_snapshot(tmp_path, name)


def test_a_damaged_snapshot_is_named(tmp_path: Path) -> None:
    _sealed(tmp_path, "a")
    make_snapshot(tmp_path, "first")
    (tmp_path / "snapshots" / "first.json").write_text("{")
    with pytest.raises(LogError, match=r"first\.json is damaged"):
        make_snapshot(tmp_path, "first")

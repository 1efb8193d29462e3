"""Snapshots: a name for sealed files."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from bon_server.core.errors import ConfigError, LogError
from bon_server.log.read.snapshot import make_snapshot, open_snapshot, read_snapshot
from bon_server.log.remove.erase import erase
from bon_server.log.remove.rewrite import Match
from bon_server.log.segments.files import listed
from bon_server.log.spool.spool import Spool
from bon_server.system.files import sha256_of
from tests.log.records import record
from tests.log.seal.test_sealing import flip, seal


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
    with pytest.raises(ConfigError, match="snapshot: "):
        make_snapshot(tmp_path, name)


def test_a_damaged_snapshot_is_named(tmp_path: Path) -> None:
    _sealed(tmp_path, "a")
    make_snapshot(tmp_path, "first")
    (tmp_path / "snapshots" / "first.json").write_text("{")
    with pytest.raises(LogError, match=r"first\.json is damaged"):
        make_snapshot(tmp_path, "first")


def _ids(folder: Path, name: str) -> list[str]:
    with open_snapshot(folder, name) as reader:
        return [one.request_id for one in reader.records()]


def test_a_reader_of_a_snapshot_reads_what_was_pinned_and_nothing_else(tmp_path: Path) -> None:
    _sealed(tmp_path, "abc")
    snapshot = make_snapshot(tmp_path, "first")
    _sealed(tmp_path, "de")
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record("unsealed")])
        assert _ids(tmp_path, "first") == list("abc"), "also while a server has it open"
    with open_snapshot(tmp_path, "first") as reader:
        assert sum(batch.num_rows for batch in reader.batches(["request_id"])) == 3
        assert (reader.writers, reader.unsealed) == (reader.writers[:1], 0)
        sources = reader.sources()
    (pinned,) = snapshot["segments"]
    assert [(one.file, one.rows, one.sha256) for one in sources] == [(tmp_path / pinned["file"], 3, pinned["sha256"])]


def test_a_snapshot_of_an_empty_log_is_empty(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path)):
        make_snapshot(tmp_path, "nothing")
    _sealed(tmp_path, "a")
    with open_snapshot(tmp_path, "nothing") as reader:
        assert (list(reader.records()), reader.sources(), reader.writers) == ([], [], ())


def test_a_snapshot_goes_with_a_copy_of_the_segments(tmp_path: Path) -> None:
    _sealed(tmp_path / "log", "abc")
    make_snapshot(tmp_path / "log", "first")
    for part in ("segments", "snapshots"):
        shutil.copytree(tmp_path / "log" / part, tmp_path / "copy" / part)
    assert _ids(tmp_path / "copy", "first") == list("abc")


def test_a_segment_that_has_changed_is_not_what_was_pinned(tmp_path: Path) -> None:
    _sealed(tmp_path, "abc")
    _sealed(tmp_path, "de")
    make_snapshot(tmp_path, "first")
    changed, _ = listed(tmp_path)
    flip(tmp_path / changed, "request_id")
    with pytest.raises(LogError, match=rf"{changed} has changed since it was pinned"):
        open_snapshot(tmp_path, "first")
    (tmp_path / changed).unlink()
    with pytest.raises(LogError, match=rf"{changed} is missing"):
        open_snapshot(tmp_path, "first")
    left_out: list[LogError] = []
    with open_snapshot(tmp_path, "first", left_out.append) as reader:
        assert [one.request_id for one in reader.records()] == ["d", "e"]
    assert len(left_out) == 1


def test_a_stale_snapshot_is_refused(tmp_path: Path) -> None:
    _sealed(tmp_path, "abc")
    _sealed(tmp_path, "de")
    make_snapshot(tmp_path, "first")
    changed, _ = listed(tmp_path)
    with open_snapshot(tmp_path, "first") as reader:
        erase(tmp_path, Match(request_id="b"))
        with pytest.raises(LogError, match=changed):
            list(reader.records())
    with pytest.raises(LogError, match=rf"first\.json is stale: records of {changed} were erased"):
        open_snapshot(tmp_path, "first", lambda error: None)


@pytest.mark.parametrize(
    ("name", "error", "why"), [("other", LogError, "cannot be read"), ("../x", ConfigError, "given")]
)
def test_a_snapshot_that_is_not_there_is_named(tmp_path: Path, name: str, error: type[Exception], why: str) -> None:
    _sealed(tmp_path, "a")
    with pytest.raises(error, match=why):
        open_snapshot(tmp_path, name)


def test_a_snapshot_names_segments_only(tmp_path: Path) -> None:
    _sealed(tmp_path, "a")
    make_snapshot(tmp_path, "first")
    path = tmp_path / "snapshots" / "first.json"
    path.write_text(path.read_text().replace("segments/date", "elsewhere/date"))
    with pytest.raises(LogError, match="is no segment"):
        open_snapshot(tmp_path, "first")

"""Damage to feedback, planted and found by kind, file and row; and what looks odd but is right."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bon_server.log.feedback import encode, record_feedback
from bon_server.log.read.snapshot import make_snapshot, mark_stale
from bon_server.log.segments.files import footer_sha256, listed
from bon_server.log.spool.database import SPOOL_NAME
from bon_server.log.spool.spool import Spool
from bon_server.log.verify.verify import verify
from bon_server.system.files import sha256_of
from tests.log.observations import observation
from tests.log.records import record, scored
from tests.log.seal.test_sealing import flip, seal

SEALED, UNSEALED = 5, 3


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A record, five sealed observations of it in one file and three in the spool."""
    folder = tmp_path / "log"
    with closing(Spool.open(folder)) as spool:
        spool.append([record("r")])
        for i in range(SEALED):
            record_feedback(spool, observation(f"f{i}"))
        seal(spool)
        for i in range(SEALED, SEALED + UNSEALED):
            record_feedback(spool, observation(f"f{i}"))
    return folder


def _segment(log: Path) -> str:
    (file,) = listed(log, "feedback")
    return file


def _change(log: Path, statement: str, *values: bytes | str | int) -> None:
    with closing(apsw.Connection(str(log / SPOOL_NAME))) as database:
        database.execute(statement, values)


def _found(log: Path) -> list[tuple[str, str, int | None]]:
    report = verify(log)
    assert report["ok"] == (not report["problems"])
    return [(one["kind"], one["file"], one.get("row")) for one in report["problems"]]


def _rewrite(log: Path, change: Callable[[pa.Table], pa.Table], **options: Any) -> str:
    """Another file in the segment's place, in the catalog as if it were the one."""
    file = _segment(log)
    path = log / file
    pq.write_table(change(pq.read_table(path, partitioning=None)), path, compression="zstd", **options)
    entry = (path.stat().st_size, sha256_of(path), footer_sha256(path))
    _change(log, "UPDATE feedback_segments SET bytes = ?, sha256 = ?, footer_sha256 = ?", *entry)
    return file


def _with(table: pa.Table, name: str, row: int, value: object) -> pa.Table:
    values = table[name].to_pylist()
    values[row] = value
    column = table.column_names.index(name)
    return table.set_column(column, table.schema.field(column), pa.array(values, table.schema.field(column).type))


def test_whole_feedback_has_no_problems(log: Path) -> None:
    report = verify(log)
    assert report["ok"] and report["notes"] == []
    assert (report["records"], report["feedback"]) == (1, SEALED + UNSEALED)


def test_a_changed_row(log: Path) -> None:
    _change(log, "UPDATE feedback SET feedback = x'80' WHERE ordinal = 7")
    assert _found(log) == [("feedback_damaged", SPOOL_NAME, 7)]


def test_a_row_that_is_no_observation(log: Path) -> None:
    digest = hashlib.sha256(b"\x80").digest()
    _change(log, "UPDATE feedback SET feedback = x'80', sha256 = ? WHERE ordinal = 7", digest)
    assert _found(log) == [("feedback_damaged", SPOOL_NAME, 7)]


@pytest.mark.parametrize("column", ["feedback_id", "request_id", "principal"])
def test_a_row_under_another_name(log: Path, column: str) -> None:
    _change(log, f"UPDATE feedback SET {column} = 'other' WHERE ordinal = 7")
    assert _found(log) == [("feedback_unfit", SPOOL_NAME, 7)]


def test_an_id_in_spool_and_segment(log: Path) -> None:
    blob = encode(observation("f3"))
    values = (hashlib.sha256(blob).digest(), blob)
    _change(log, "UPDATE feedback SET feedback_id = 'f3', sha256 = ?, feedback = ? WHERE ordinal = 7", *values)
    assert _found(log) == [("duplicate_id", SPOOL_NAME, 7)]


def test_a_missing_truncated_or_changed_segment(log: Path) -> None:
    path = log / _segment(log)
    whole = path.read_bytes()
    flip(path, "name")
    assert {kind for kind, _, _ in _found(log)} == {"segment_changed", "segment_unreadable", "segment_rows"}
    path.write_bytes(whole[:-50])
    assert [kind for kind, _, _ in _found(log)] == ["segment_size", "segment_unreadable", "segment_rows"]
    path.unlink()
    assert _found(log) == [("segment_missing", path.relative_to(log).as_posix(), None)]


def test_a_segment_that_is_not_in_the_catalog_and_a_foreign_file(log: Path) -> None:
    path = log / _segment(log)
    copy = path.with_name("000000000001-000000000004.parquet")
    copy.write_bytes(path.read_bytes())
    (log / "feedback" / "notes.txt").write_text("hello")
    name = copy.relative_to(log).as_posix()
    assert sorted(_found(log)) == [("foreign_file", "feedback/notes.txt", None), ("segment_unregistered", name, None)]


@pytest.mark.parametrize(
    ("kind", "row", "change"),
    [
        ("duplicate_id", 3, lambda table: _with(table, "feedback_id", 2, "f0")),
        ("date", 3, lambda table: _with(table, "created_at", 2, datetime(2026, 11, 21, tzinfo=UTC))),
        ("ordinal", 99, lambda table: _with(table, "ordinal", 2, 99)),
        ("segment_unreadable", 3, lambda table: _with(table, "value_bool", 2, None)),
        ("segment_unreadable", 3, lambda table: _with(table, "value_text", 2, "and a text")),
        ("segment_rows", None, lambda table: table.slice(0, 4)),
    ],
)
def test_a_row_of_a_segment_that_is_not_right(
    log: Path, kind: str, row: int | None, change: Callable[[pa.Table], pa.Table]
) -> None:
    file = _rewrite(log, change)
    assert (kind, file, row) in _found(log)


def test_statistics_that_are_not_there(log: Path) -> None:
    file = _rewrite(log, lambda table: table, write_statistics=False)
    assert set(_found(log)) == {("statistics", file, None)}


def test_an_interrupted_sealing_of_feedback_is_a_note(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_power(*args: object) -> None:
        raise OSError(5, "the power went")

    with closing(Spool.open(log)) as spool, monkeypatch.context() as patch:
        patch.setattr("bon_server.log.seal.sealing.catalog_entry", lose_power)
        with pytest.raises(OSError, match="power"):
            seal(spool)
    report = verify(log)
    assert report["ok"] and [note["kind"] for note in report["notes"]] == ["interrupted_sealing"]


def test_a_record_without_content_is_whole(log: Path) -> None:
    bare = scored(0, 1.0, text="", token_ids=())
    with closing(Spool.open(log)) as spool:
        spool.append([record("bare", request_digest="", content_logged=False, candidates=(bare,))])
        assert verify(log)["problems"] == []
        seal(spool)
    assert verify(log)["ok"]


def test_reports_of_imports_belong_to_a_log_but_nothing_below_them(log: Path) -> None:
    (log / "rejected" / "deeper").mkdir(parents=True)
    (log / "rejected" / "report.jsonl").write_text("{}")
    assert verify(log)["ok"]
    (log / "rejected" / "deeper" / "report.jsonl").write_text("{}")
    assert _found(log) == [("foreign_file", "rejected/deeper/report.jsonl", None)]


def test_a_stale_snapshot_is_a_note_but_other_changes_are_not(log: Path) -> None:
    make_snapshot(log, "pinned")
    (file,) = listed(log)
    flip(log / file)
    assert ("snapshot_segment", "snapshots/pinned.json", None) in _found(log)
    mark_stale(log, [file])
    assert ("segment_changed", file, None) in _found(log)
    assert "snapshot_segment" not in {kind for kind, _, _ in _found(log)}
    assert [note["kind"] for note in verify(log)["notes"]] == ["snapshot_stale"]

"""Damage of every kind, planted and found by kind, file and row: write, damage, verify."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec import structs

from bon_server.core.errors import LogError
from bon_server.core.types import CandidateStatus
from bon_server.log.read.reader import LogReader
from bon_server.log.read.snapshot import make_snapshot
from bon_server.log.record import encode
from bon_server.log.segments.files import footer_sha256, listed
from bon_server.log.spool.database import SPOOL_NAME
from bon_server.log.spool.spool import Spool
from bon_server.log.verify.verify import Report, verify
from bon_server.system.files import sha256_of
from tests.log.records import record, scored
from tests.log.seal.test_sealing import flip, seal

SEALED, UNSEALED = 10, 4


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Ten sealed records in one segment, four in the spool, and a snapshot `pinned`."""
    folder = tmp_path / "log"
    with closing(Spool.open(folder)) as spool:
        spool.append([record(f"r{i}", selected_index=0) for i in range(SEALED)])
        seal(spool)
        make_snapshot(folder, "pinned")
        spool.append([record(f"r{i}") for i in range(SEALED, SEALED + UNSEALED)])
    return folder


def _segment(log: Path) -> Path:
    (file,) = listed(log)
    return log / file


def _change(log: Path, statement: str, *values: bytes | str | int) -> None:
    with closing(apsw.Connection(str(log / SPOOL_NAME))) as database:
        database.execute(statement, values)


def _found(log: Path) -> list[tuple[str, str, int | None]]:
    report: Report = verify(log)
    assert report["ok"] == (not report["problems"])
    return [(one["kind"], one["file"], one.get("row")) for one in report["problems"]]


def _rewrite(log: Path, change: Callable[[pa.Table], pa.Table], **options: Any) -> str:
    """Another file in the segment's place, in the catalog as if it were the one."""
    path = _segment(log)
    file = path.relative_to(log).as_posix()
    pq.write_table(change(pq.read_table(path, partitioning=None)), path, compression="zstd", **options)
    (log / "snapshots" / "pinned.json").unlink()
    entry = (path.stat().st_size, sha256_of(path), footer_sha256(path))
    _change(log, "UPDATE segments SET bytes = ?, sha256 = ?, footer_sha256 = ?", *entry)
    return file


def _with_candidates(table: pa.Table, row: int, **changes: Any) -> pa.Table:
    """The candidate 0 of a row with other values."""
    candidates = table["candidates"].to_pylist()
    candidates[row][0].update(changes)
    column = table.column_names.index("candidates")
    return table.set_column(column, table.schema.field(column), pa.array(candidates, table.schema.field(column).type))


def _with(table: pa.Table, name: str, row: int, value: object) -> pa.Table:
    values = table[name].to_pylist()
    values[row] = value
    column = table.column_names.index(name)
    return table.set_column(column, table.schema.field(column), pa.array(values, table.schema.field(column).type))


def test_a_whole_log_has_no_problems(log: Path) -> None:
    report = verify(log)
    assert report["ok"] and report["problems"] == report["notes"] == []
    assert (report["records"], report["segments"]) == (SEALED + UNSEALED, 1)


def test_no_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="holds no log"):
        verify(tmp_path)


def test_a_flipped_byte_of_a_segment(log: Path) -> None:
    flip(_segment(log))
    file = _segment(log).relative_to(log).as_posix()
    kinds = {kind for kind, name, _ in _found(log) if name == file}
    assert kinds == {"segment_changed", "segment_unreadable", "segment_rows"}
    assert ("snapshot_segment", "snapshots/pinned.json", None) in _found(log)


def test_any_changed_byte_of_a_segment_is_found(log: Path) -> None:
    path = _segment(log)
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 25)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        assert "segment_changed" in {kind for kind, _, _ in _found(log)}, place


def test_a_missing_segment(log: Path) -> None:
    file = _segment(log).relative_to(log).as_posix()
    _segment(log).unlink()
    assert _found(log) == [("segment_missing", file, None), ("snapshot_segment", "snapshots/pinned.json", None)]


def test_a_truncated_segment(log: Path) -> None:
    path = _segment(log)
    path.write_bytes(path.read_bytes()[:-50])
    assert [kind for kind, _, _ in _found(log)] == [
        "segment_size",
        "segment_unreadable",
        "segment_rows",
        "snapshot_segment",
    ]


def test_a_segment_that_is_not_in_the_catalog(log: Path) -> None:
    path = _segment(log)
    copy = path.with_name("000000000001-000000000009.parquet")
    copy.write_bytes(path.read_bytes())
    assert _found(log) == [("segment_unregistered", copy.relative_to(log).as_posix(), None)]


def test_fewer_rows_than_the_catalog_says(log: Path) -> None:
    file = _rewrite(log, lambda table: table.slice(0, 8))
    assert _found(log) == [("segment_rows", file, None)]


def test_statistics_that_are_not_there_or_wrong(log: Path) -> None:
    file = _rewrite(log, lambda table: table, write_statistics=False)
    assert set(_found(log)) == {("statistics", file, None)}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("reward", lambda table: _with_candidates(table, 2, reward=None)),
        ("reward", lambda table: _with_candidates(table, 2, reward=float("nan"))),
        ("reward", lambda table: _with_candidates(table, 2, status="pruned")),
        ("candidates", lambda table: _with_candidates(table, 2, index=1)),
        ("candidates", lambda table: _with(table, "n", 2, 5)),
        ("selection", lambda table: _with(table, "selected_index", 2, 2)),
        ("duplicate_id", lambda table: _with(table, "request_id", 2, "r0")),
        ("date", lambda table: _with(table, "created_at", 2, datetime(2026, 11, 21, tzinfo=UTC))),
        ("segment_unreadable", lambda table: _with(table, "kind", 2, "nonsense")),
    ],
)
def test_a_row_of_a_segment_that_is_not_right(log: Path, kind: str, change: Callable[[pa.Table], pa.Table]) -> None:
    file = _rewrite(log, change)
    assert (kind, file, 3) in _found(log)


def test_ordinals_out_of_range_or_twice(log: Path) -> None:
    file = _rewrite(log, lambda table: _with(_with(table, "ordinal", 2, 99), "ordinal", 5, 1))
    found = _found(log)
    assert ("ordinal", file, 99) in found and ("ordinal", file, 1) in found


def test_a_changed_row_of_the_spool(log: Path) -> None:
    flipped = encode(record("r11")).replace(b"answer 1", b"ansver 1")
    _change(log, "UPDATE records SET record = ? WHERE ordinal = 12", flipped)
    assert _found(log) == [("row_damaged", SPOOL_NAME, 12)]


def test_a_row_of_the_spool_that_is_no_record(log: Path) -> None:
    _change(log, "UPDATE records SET record = x'80', sha256 = ? WHERE ordinal = 12", hashlib.sha256(b"\x80").digest())
    assert _found(log) == [("row_damaged", SPOOL_NAME, 12)]


def test_a_row_of_the_spool_under_another_name(log: Path) -> None:
    _change(log, "UPDATE records SET request_id = 'other' WHERE ordinal = 12")
    assert _found(log) == [("row_unfit", SPOOL_NAME, 12)]


def test_a_record_that_fits_no_segment(log: Path) -> None:
    with closing(Spool.open(log)) as spool:
        spool.append([record("unfit", candidates=(scored(0, 1.0, token_ids=(1 << 40,)),))])
    assert _found(log) == [("row_unfit", SPOOL_NAME, 15)]


def test_an_id_in_spool_and_segment(log: Path) -> None:
    _change(log, "DELETE FROM sealed")
    with closing(Spool.open(log)) as spool:
        spool.append([record("r3")])
    assert _found(log) == [("duplicate_id", SPOOL_NAME, 15)]


def test_an_id_may_come_again_after_its_window(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record("r")])
        seal(spool, replay_window_s=0)
        spool.append([record("r", created_at=datetime(2999, 1, 1, tzinfo=UTC))])
        seal(spool, replay_window_s=0)
    assert verify(tmp_path)["ok"]


def test_damaged_pages_of_the_spool(log: Path) -> None:
    with (log / SPOOL_NAME).open("r+b") as file:
        size = file.seek(0, 2)
        for place in range(4_096, size, 4_096):
            file.seek(place)
            file.write(b"\xa5" * 64)
    assert ("spool_damaged", SPOOL_NAME) in {found[:2] for found in _found(log)}


def test_a_spool_that_is_no_database(log: Path) -> None:
    (log / SPOOL_NAME).write_bytes(b"no database" * 1_000)
    assert _found(log) == [("spool_damaged", SPOOL_NAME, None)]


@pytest.mark.parametrize("name", ["notes.txt", "segments/date=2026-11-22/stray.parquet", "snapshots/pinned.json.bak"])
def test_a_foreign_file(log: Path, name: str) -> None:
    (log / name).write_text("hello")
    assert _found(log) == [("foreign_file", name, None)]


def test_a_damaged_snapshot(log: Path) -> None:
    (log / "snapshots" / "pinned.json").write_text('{"name": "pinned"}')
    assert _found(log) == [("snapshot_damaged", "snapshots/pinned.json", None)]


def test_temporary_files_and_interrupted_sealings_are_notes(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_power(*args: object) -> None:
        raise OSError(5, "the power went")

    with closing(Spool.open(log)) as spool, monkeypatch.context() as patch:
        patch.setattr("bon_server.log.seal.sealing.catalog_entry", lose_power)
        with pytest.raises(OSError, match="power"):
            seal(spool)
    (_segment_folder(log) / ".x.parquet.tmp").write_bytes(b"half")
    report = verify(log)
    assert report["ok"], report["problems"]
    assert {note["kind"] for note in report["notes"]} == {"temporary_file", "interrupted_sealing"}
    with LogReader(log) as reader:
        assert len(list(reader.records())) == SEALED + UNSEALED


def _segment_folder(log: Path) -> Path:
    return log / next(listed(log)).rpartition("/")[0]


def test_candidates_without_rewards_are_fine(tmp_path: Path) -> None:
    plain = record("r")
    pruned = structs.replace(scored(1, 0.0), status=CandidateStatus.PRUNED, reward=None)
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([replace(plain, candidates=(plain.candidates[0], pruned))])
    assert verify(tmp_path)["ok"]

"""Sealing: what leaves the spool is in whole segments of the catalog, once, whatever happens on the way."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import apsw
import pyarrow.parquet as pq
import pytest

from bon_server.core.errors import InternalError, LogError, LogFull, RequestIdReused, Unavailable
from bon_server.core.types import Kind, Outcome
from bon_server.log import catalog
from bon_server.log.catalog import Segment
from bon_server.log.feedback import record_feedback
from bon_server.log.seal import sealing
from bon_server.log.segments.files import SegmentsWriter, listed, open_parquet, place_of
from bon_server.log.spool.database import SPOOL_NAME, open_for_reading
from bon_server.log.spool.spool import Spool
from bon_server.log.verify.verify import verify
from tests.log.observations import observation
from tests.log.records import record, scored

DAY = 86_400.0
BIG = 1 << 30


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """An open spool in `tmp_path`."""
    with closing(Spool.open(tmp_path)) as spool:
        yield spool


def seal(spool: Spool, seal_bytes: int = BIG, replay_window_s: float = DAY) -> sealing.SealResult:
    """Seals with settings that matter little to most tests."""
    return sealing.seal(spool, seal_bytes, replay_window_s)


def in_catalog(folder: Path) -> list[Segment]:
    """The catalog of a log."""
    with closing(open_for_reading(folder / SPOOL_NAME)) as database:
        return catalog.segments(database)


def in_spool(folder: Path) -> list[int]:
    """Ordinals still in the spool."""
    with closing(open_for_reading(folder / SPOOL_NAME)) as database:
        return [row[0] for row in database.execute("SELECT ordinal FROM records ORDER BY ordinal")]


def sealed_rows(folder: Path) -> list[tuple[str, int]]:
    """(request id, ordinal) in the segments of the catalog, in ordinal order."""
    rows = [
        (row["request_id"], row["ordinal"])
        for one in in_catalog(folder)
        for row in pq.ParquetFile(folder / one.file).read(columns=["request_id", "ordinal"]).to_pylist()
    ]
    return sorted(rows, key=lambda row: row[1])


def test_sealed_records_are_in_a_registered_segment_and_not_in_the_spool(tmp_path: Path, spool: Spool) -> None:
    spool.append([record(f"r{i}") for i in range(40)])
    result = seal(spool)
    assert (result.records, result.left, len(result.files)) == (40, 0, 1)
    (segment,) = in_catalog(tmp_path)
    assert segment.file == result.files[0] and segment.rows == 40
    place = place_of(segment.file)
    assert place is not None and (place.date, place.first_ordinal, place.last_ordinal) == ("2026-11-22", 1, 40)
    assert segment.bytes == (tmp_path / segment.file).stat().st_size
    assert in_spool(tmp_path) == []
    assert sealed_rows(tmp_path) == [(f"r{i}", i + 1) for i in range(40)]
    assert spool.append([record("next")]) == [41]


def test_nothing_to_seal_makes_no_file(tmp_path: Path, spool: Spool) -> None:
    assert seal(spool) == sealing.SealResult()
    assert list(listed(tmp_path)) == []


def test_a_file_for_each_date(tmp_path: Path, spool: Spool) -> None:
    days = [datetime(2026, 1, 1 + i % 3, 23, 59, 59, 999_999, tzinfo=UTC) for i in range(9)]
    spool.append([record(f"r{i}", created_at=day) for i, day in enumerate(days)])
    seal(spool)
    assert [(one.file.split("/")[1], one.rows) for one in in_catalog(tmp_path)] == [
        ("date=2026-01-01", 3),
        ("date=2026-01-02", 3),
        ("date=2026-01-03", 3),
    ]
    assert [ordinal for _, ordinal in sealed_rows(tmp_path)] == list(range(1, 10))


def test_a_big_spool_is_sealed_in_several_steps(tmp_path: Path, spool: Spool) -> None:
    spool.append([record(f"r{i}", rewards=[0.5] * 8) for i in range(30)])
    result = seal(spool, seal_bytes=10_000)
    assert len(result.files) > 3 and result.records == 30
    ranges = [(one.first_ordinal, one.last_ordinal) for one in in_catalog(tmp_path)]
    assert [first for first, _ in ranges][1:] == [last + 1 for _, last in ranges][:-1]
    assert sealed_rows(tmp_path) == [(f"r{i}", i + 1) for i in range(30)]


def test_files_and_folders_are_their_owners(tmp_path: Path, spool: Spool) -> None:
    spool.append([record()])
    seal(spool)
    for path in (tmp_path / "segments").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.is_file() else 0o700), path


def test_rows_are_sorted_by_prompt_within_rising_row_groups(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bon_server.log.segments.files.ROW_GROUP_RECORDS", 32)
    spool.append([record(f"r{i}", prompt_hash=f"{i % 3}") for i in range(64)])
    (file,) = seal(spool).files
    parquet = pq.ParquetFile(tmp_path / file)
    assert parquet.metadata.num_row_groups == 2
    for group, first in ((0, 1), (1, 33)):
        rows = parquet.read_row_group(group, columns=["prompt_hash", "ordinal"]).to_pylist()
        pairs = [(row["prompt_hash"], row["ordinal"]) for row in rows]
        assert pairs == sorted(pairs) and {ordinal for _, ordinal in pairs} == set(range(first, first + 32))
        column = parquet.metadata.row_group(group).column(7)
        assert column.path_in_schema == "ordinal" and column.compression == "ZSTD"
        assert (column.statistics.min, column.statistics.max) == (first, first + 31)


def test_damaged_rows_stay_in_the_spool(tmp_path: Path, spool: Spool) -> None:
    spool.append([record(f"r{i}") for i in range(5)])
    spool.append([record("unfit", candidates=(scored(0, 1.0, token_ids=(1 << 40,)),))])
    with closing(apsw.Connection(str(tmp_path / SPOOL_NAME))) as database:
        database.execute("UPDATE records SET sha256 = x'00' WHERE ordinal = 3")
    result = seal(spool)
    assert (result.records, result.left) == (4, 2)
    assert in_spool(tmp_path) == [3, 6]
    assert [ordinal for _, ordinal in sealed_rows(tmp_path)] == [1, 2, 4, 5]
    assert seal(spool) == sealing.SealResult(), "what cannot be sealed is not tried again and again"
    spool.append([record("later")])
    assert seal(spool).records == 1 and in_spool(tmp_path) == [3, 6]


def flip(path: Path, column: str = "prompt_hash") -> None:
    """Changes a byte in the data of a column."""
    chunks = pq.ParquetFile(path).metadata.row_group(0)
    chunk = next(c for c in map(chunks.column, range(chunks.num_columns)) if c.path_in_schema == column)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start + chunk.total_compressed_size - 1] ^= 0xFF
    path.write_bytes(content)


class _Crash(BaseException):
    """The process ends here."""


def _crash(*args: object) -> None:
    raise _Crash


@pytest.mark.parametrize("where", ["planned", "written", "remembered", "completing"])
def test_a_crash_at_any_step_is_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    dates = [datetime(2026, 1, 1 + i % 2, tzinfo=UTC) for i in range(20)]
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record(f"r{i}", created_at=date) for i, date in enumerate(dates)])
        with monkeypatch.context() as patch:
            target = {
                "planned": "bon_server.log.seal.sealing.SegmentsWriter",
                "written": "bon_server.log.seal.sealing.catalog_entry",
                "remembered": "bon_server.log.seal.sealing.catalog.complete",
            }.get(where)
            if target is not None:
                patch.setattr(target, _crash)
                with pytest.raises(_Crash):
                    seal(spool)
            else:
                _complete_but_lose_the_commit(spool, patch)
        assert in_spool(tmp_path) == list(range(1, 21)) and in_catalog(tmp_path) == []
        before = set(listed(tmp_path))
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record("later", created_at=dates[0])])
        seal(spool)
    assert before <= {one.file for one in in_catalog(tmp_path)} == set(listed(tmp_path))
    assert len(in_catalog(tmp_path)) == 3, "the interrupted range again, and then the rest"
    assert sealed_rows(tmp_path) == [*((f"r{i}", i + 1) for i in range(20)), ("later", 21)]


def _complete_but_lose_the_commit(spool: Spool, patch: pytest.MonkeyPatch) -> None:
    complete = catalog.complete

    def failing(database: apsw.Connection, made: list[Segment], left: list[int]) -> None:
        complete(database, made, left)
        raise apsw.FullError("database or disk is full")

    patch.setattr("bon_server.log.seal.sealing.catalog.complete", failing)
    with pytest.raises(LogFull):
        seal(spool)


def test_a_repeated_sealing_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record(f"r{i}") for i in range(20)])
        with monkeypatch.context() as patch:
            patch.setattr("bon_server.log.seal.sealing.catalog.complete", _crash)
            with suppress(_Crash):
                seal(spool)
    (file,) = listed(tmp_path)
    first = (tmp_path / file).read_bytes()
    with closing(Spool.open(tmp_path)) as spool:
        seal(spool)
        assert (tmp_path / file).read_bytes() == first


@pytest.mark.parametrize("failing", ["flush", "_start"])
def test_a_full_disk_leaves_everything_as_it_was(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    spool.append([record(f"r{i}") for i in range(20)])
    with monkeypatch.context() as patch:
        full: Callable[..., None] = _full
        owner = "_Growing" if failing == "flush" else "SegmentsWriter"
        patch.setattr(f"bon_server.log.segments.files.{owner}.{failing}", full)
        with pytest.raises(OSError, match="No space"):
            seal(spool)
    assert in_spool(tmp_path) == list(range(1, 21)) and in_catalog(tmp_path) == []
    assert not [path for path in (tmp_path / "segments").rglob("*") if path.is_file()]
    assert seal(spool).records == 20


def _full(*args: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_file_that_does_not_read_back_keeps_its_rows_in_the_spool(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.append([record(f"r{i}") for i in range(20)])

    def damaging(path: Path) -> object:
        flip(path)
        return open_parquet(path)

    with monkeypatch.context() as patch:
        patch.setattr("bon_server.log.seal.sealing.open_parquet", damaging)
        with pytest.raises(LogError, match="parquet"):
            seal(spool)
    assert in_spool(tmp_path) == list(range(1, 21))
    assert seal(spool).records == 20


def test_a_file_with_too_few_rows_keeps_them_in_the_spool(
    tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.append([record(f"r{i}") for i in range(20)])
    rows = SegmentsWriter.rows
    with monkeypatch.context() as patch:
        patch.setattr(SegmentsWriter, "rows", lambda self: {file: count + 1 for file, count in rows(self).items()})
        with pytest.raises(LogError, match="written with 21 rows and has 20"):
            seal(spool)
    assert in_spool(tmp_path) == list(range(1, 21))
    assert seal(spool).records == 20


async def test_a_sealed_attempt_still_answers_retries(tmp_path: Path, spool: Spool) -> None:
    records = [record(f"r{i}", principal="ann", tags={"i": str(i)}) for i in range(50)]
    spool.append(records)
    spool.append([record("tried", attempt=1, outcome=Outcome.FAILED)])
    seal(spool)
    logged = spool.latest("ann", "r7")
    assert logged is not None and logged.record is None and logged.outcome is Outcome.OK
    assert spool.read(logged) == spool.find("ann", "r7") == replace(records[7], ordinal=8)
    assert spool.latest("bob", "r7") is None
    with pytest.raises(RequestIdReused):
        await spool.commit(record("r7", principal="ann"))
    tried = spool.latest("", "tried")
    assert tried is not None and (tried.attempt, tried.outcome) == (1, Outcome.FAILED)
    await spool.commit(record("tried", attempt=2))
    found = spool.find("", "tried")
    assert found is not None and found.attempt == 2
    seal(spool)
    found = spool.find("", "tried")
    assert found is not None and (found.attempt, found.ordinal) == (2, spool_last(tmp_path))


def spool_last(folder: Path) -> int:
    """The highest ordinal sealed."""
    return max(one.last_ordinal for one in in_catalog(folder))


def test_the_window_ends_but_not_for_imports(spool: Spool) -> None:
    spool.append([record("asked"), record("imported", kind=Kind.IMPORT)])
    seal(spool, replay_window_s=0)
    assert spool.find("", "asked") is None and spool.find("", "imported") is not None
    assert spool.append([record("asked"), record("imported", kind=Kind.IMPORT)])[1] is None
    seal(spool, replay_window_s=1e-6)
    seal(spool)
    assert spool.latest("", "asked") is None


def test_a_sealed_answer_that_cannot_be_read_is_an_error(tmp_path: Path, spool: Spool) -> None:
    spool.append([record("r")])
    (file,) = seal(spool).files
    (tmp_path / file).unlink()
    with pytest.raises(InternalError):
        spool.find("", "r")


def test_a_spool_of_the_first_layout_gets_a_catalog(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record("old")])
    with closing(apsw.Connection(str(tmp_path / SPOOL_NAME))) as database:
        database.execute("DROP TRIGGER sealed_attempts_are_logged")
        for table in ("writer", "segments", "sealing", "sealed"):
            database.execute(f"DROP TABLE {table}")
        database.pragma("user_version", 1)
    assert in_catalog(tmp_path) == []
    with closing(Spool.open(tmp_path)) as spool:
        assert seal(spool).records == 1
    with closing(open_for_reading(tmp_path / SPOOL_NAME)) as database:
        writer = catalog.writer_id(database)
    Spool.open(tmp_path).close()
    with closing(open_for_reading(tmp_path / SPOOL_NAME)) as database:
        assert writer is not None and catalog.writer_id(database) == writer


def _interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log whose process ended between the segment and dropping its rows; returns the segment."""
    with closing(Spool.open(folder)) as spool, monkeypatch.context() as patch:
        spool.append([record("a"), record("b")])
        patch.setattr("bon_server.log.seal.sealing.catalog_entry", _crash)
        with pytest.raises(_Crash):
            seal(spool)
    (file,) = listed(folder)
    return folder / file


def test_a_segment_of_the_same_rows_is_as_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an older version of the libraries wrote it before the crash."""
    segment = _interrupted(tmp_path, monkeypatch)
    pq.write_table(pq.read_table(segment, partitioning=None), segment, compression="none")
    before = segment.read_bytes()
    with closing(Spool.open(tmp_path)) as spool:
        seal(spool)
        assert spool.failure is None
    assert segment.read_bytes() == before and verify(tmp_path)["ok"]
    assert sealed_rows(tmp_path) == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("other", ["rows", "bytes"])
def test_another_segment_of_that_name_is_left_alone_and_closes_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    segment = _interrupted(tmp_path, monkeypatch)
    rows = pq.read_table(segment, partitioning=None)
    if other == "rows":
        pq.write_table(rows.slice(1), segment)
    else:
        segment.write_bytes(b"no segment")
    there = segment.read_bytes()
    with closing(Spool.open(tmp_path)) as spool:
        with pytest.raises(Unavailable):
            seal(spool)
        assert spool.failure is not None and f"{segment} is there already" in str(spool.failure)
        with pytest.raises(Unavailable):
            spool.append([record("later")])
    assert segment.read_bytes() == there and in_spool(tmp_path) == [1, 2]
    assert not list(tmp_path.rglob("*.tmp"))
    segment.rename(tmp_path / "kept")
    with closing(Spool.open(tmp_path)) as spool:
        seal(spool)
    assert sealed_rows(tmp_path) == [("a", 1), ("b", 2)]


def test_so_for_feedback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Spool.open(tmp_path)) as spool, monkeypatch.context() as patch:
        record_feedback(spool, observation("f"))
        patch.setattr("bon_server.log.seal.sealing.catalog_entry", _crash)
        with pytest.raises(_Crash):
            seal(spool)
    (file,) = listed(tmp_path, "feedback")
    (tmp_path / file).write_bytes(b"no segment")
    with closing(Spool.open(tmp_path)) as spool:
        with pytest.raises(Unavailable):
            seal(spool)
        assert file in str(spool.failure)

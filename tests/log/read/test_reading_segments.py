"""One reader over segments and spool: everything once, in order, whatever is sealed meanwhile."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apsw
import pyarrow as pa
import pytest

from bon_server.core.errors import ConfigError, LogError
from bon_server.core.types import Kind, Outcome
from bon_server.log.read.reader import EVERYTHING, PAGE_ROWS, LogReader, Where
from bon_server.log.read.stats import log_stats
from bon_server.log.record import Record
from bon_server.log.segments.columns import SCHEMA, from_batch
from bon_server.log.segments.files import listed
from bon_server.log.segments.where import Ordinals
from bon_server.log.spool.database import SPOOL_NAME
from bon_server.log.spool.spool import Spool
from bon_server.log.verify.verify import verify
from tests.log.records import ODD_TEXT, record, scored
from tests.log.seal.test_sealing import flip, seal

ROOT = Path(__file__).parents[3]
FIRST_DAY = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """An open spool in `tmp_path / "log"`."""
    with closing(Spool.open(tmp_path / "log")) as spool:
        yield spool


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The folder of `spool`."""
    return tmp_path / "log"


def _records(first: int, last: int) -> list[Record]:
    """With the ordinals first … last, over three days."""
    return [
        record(
            f"r{i}",
            candidates=(scored(0, i / 7, text=f"{ODD_TEXT} {i}"), scored(1, -i / 7)),
            created_at=FIRST_DAY + timedelta(days=i % 3, seconds=i),
            prompt_hash=str(i % 5),
            tags={"i": str(i)},
            kind=Kind.SCORE if i % 10 == 0 else Kind.GENERATE,
            ordinal=i,
        )
        for i in range(first, last + 1)
    ]


def _append(spool: Spool, records: list[Record]) -> None:
    spool.append([replace(one, ordinal=None) for one in records])


def _read(log: Path, where: Where = EVERYTHING) -> list[Record]:
    with LogReader(log) as reader:
        return list(reader.records(where))


def _ordinals(log: Path, where: Where) -> list[int | None]:
    """In the order of the log; `batches` must give the same rows."""
    with LogReader(log) as reader:
        ordinals = [one.ordinal for one in reader.records(where)]
        batches = list(reader.batches(["ordinal"], where))
    assert sorted(row["ordinal"] for batch in batches for row in batch.to_pylist()) == ordinals
    return ordinals


def test_segments_and_spool_are_one_log(log: Path, spool: Spool) -> None:
    records = _records(1, 300)
    _append(spool, records[:100])
    seal(spool)
    _append(spool, records[100:200])
    seal(spool, seal_bytes=20_000)
    _append(spool, records[200:])
    assert _read(log) == records
    seal(spool)
    assert _read(log) == records


def test_what_cannot_be_sealed_is_read_in_its_place(log: Path, spool: Spool) -> None:
    unfit = record("unfit", candidates=(scored(0, 1.0, token_ids=(1 << 40,)),))
    _append(spool, [*_records(1, 4), unfit, *_records(6, 9)])
    assert seal(spool).left == 1
    _append(spool, _records(10, 12))
    assert [one.ordinal for one in _read(log)] == list(range(1, 13))


def test_filters_give_the_same_from_segments_and_spool(log: Path, spool: Spool) -> None:
    records = [
        replace(one, outcome=Outcome.FAILED if i % 3 == 0 else Outcome.OK) for i, one in enumerate(_records(1, 60))
    ]
    _append(spool, records)
    wheres = [
        Where(),
        Where(request_id="r17"),
        Where(request_id="nobody"),
        Where(kind=Kind.SCORE),
        Where(outcome=Outcome.FAILED, kind=Kind.GENERATE),
        Where(after_ordinal=30),
        Where(since=FIRST_DAY + timedelta(days=1)),
        Where(until=FIRST_DAY + timedelta(days=1, seconds=31)),
        Where(since=FIRST_DAY + timedelta(days=1, seconds=1), until=FIRST_DAY + timedelta(days=2)),
        Where(ordinals=Ordinals([59, 3, 4, 1_000])),
        Where(ordinals=Ordinals([]), kind=Kind.SCORE),
    ]
    from_spool = []
    for where in wheres:
        with LogReader(log) as reader:
            from_spool.append([one.ordinal for one in reader.records(where)])
    seal(spool, seal_bytes=30_000)
    assert [_ordinals(log, where) for where in wheres] == from_spool
    assert from_spool[1] == [17] and from_spool[9] == [3, 4, 59] and from_spool[10] == []


def test_dates_that_do_not_matter_are_not_opened(log: Path, spool: Spool) -> None:
    _append(spool, _records(1, 30))
    seal(spool)
    other_days = [file for file in listed(log) if "date=2026-03-02" not in file]
    for file in other_days:
        (log / file).unlink()
    day = FIRST_DAY.replace(hour=0) + timedelta(days=1)
    with LogReader(log) as reader:
        assert len(list(reader.records(Where(since=day, until=day + timedelta(hours=23))))) == 10
        with pytest.raises(LogError, match="is missing"):
            list(reader.records())


@dataclass(frozen=True)
class _Part:
    request_id: str
    tags: dict[str, str]


def test_fields_of_segments_and_spool(log: Path, spool: Spool) -> None:
    _append(spool, _records(1, 10))
    seal(spool)
    _append(spool, _records(11, 12))
    with LogReader(log) as reader:
        assert list(reader.fields(_Part)) == [((0, i), _Part(f"r{i}", {"i": str(i)})) for i in range(1, 13)]


def test_batches_have_the_columns_asked_for(log: Path, spool: Spool) -> None:
    _append(spool, _records(1, 20))
    seal(spool)
    _append(spool, _records(21, 25))
    with LogReader(log) as reader:
        whole = list(reader.batches())
        assert all(batch.schema.equals(SCHEMA) for batch in whole)
        rows = sorted((pair for batch in whole for pair in from_batch(batch, Record)), key=lambda pair: pair[0])
        assert [one for _, one in rows] == _records(1, 25)
        part = pa.Table.from_batches(reader.batches(["candidates.reward", "ordinal"]))
        assert part.column_names == ["ordinal", "candidates"]
        assert part.sort_by("ordinal").to_pylist()[6] == {
            "ordinal": 7,
            "candidates": [{"reward": 1.0}, {"reward": -1.0}],
        }
        with pytest.raises(ConfigError, match="reword"):
            list(reader.batches(["candidates.reword"]))


@pytest.mark.parametrize("read_before", [0, 1, PAGE_ROWS, PAGE_ROWS + 1, 250])
def test_sealing_while_reading_loses_and_doubles_nothing(log: Path, spool: Spool, read_before: int) -> None:
    records = _records(1, 300)
    _append(spool, records[:100])
    seal(spool)
    _append(spool, records[100:])
    with LogReader(log) as reader:
        reading = reader.records()
        seen = [next(reading) for _ in range(read_before)]
        seal(spool, seal_bytes=20_000)
        _append(spool, _records(301, 310))
        for i, one in enumerate(reading):
            seen.append(one)
            if i == 30:
                seal(spool)
    assert seen == records


def test_sealing_while_reading_batches_loses_and_doubles_nothing(log: Path, spool: Spool) -> None:
    _append(spool, _records(1, 3 * PAGE_ROWS))
    with LogReader(log) as reader:
        seen = []
        for batch in reader.batches(["ordinal"]):
            seen += [row["ordinal"] for row in batch.to_pylist()]
            if len(seen) == 2 * PAGE_ROWS:
                _append(spool, _records(3 * PAGE_ROWS + 1, 3 * PAGE_ROWS + 9))
                seal(spool)
    assert sorted(seen) == list(range(1, 3 * PAGE_ROWS + 1))


def test_what_a_crash_left_is_not_read_twice(log: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    _append(spool, _records(1, 20))
    with monkeypatch.context() as patch:

        def lose_power(*args: object) -> None:
            raise OSError(5, "the power went")

        patch.setattr("bon_server.log.seal.sealing.catalog_entry", lose_power)
        with pytest.raises(OSError, match="power"):
            seal(spool)
    assert len(list(listed(log))) == 3
    assert _read(log) == _records(1, 20)
    assert log_stats(log)["segments"] == 0


def test_a_folder_without_its_spool_is_read_as_it_is_listed(tmp_path: Path, log: Path, spool: Spool) -> None:
    _append(spool, _records(1, 20))
    seal(spool)
    shutil.copytree(log / "segments", tmp_path / "copy" / "segments")
    assert _read(tmp_path / "copy") == _records(1, 20)
    assert log_stats(tmp_path / "copy")["segments"] == 3
    with closing(Spool.open(tmp_path / "copy")) as other:
        _append(other, _records(1, 4))
        with LogReader(tmp_path / "copy") as reader:
            assert len(reader.writers) == 2
            positions = [position for position, _ in reader.fields(_Part)]
        assert positions == sorted(positions) and len(set(positions)) == 24


def test_stats_count_both(log: Path, spool: Spool) -> None:
    _append(spool, _records(1, 20))
    before = log_stats(log)
    seal(spool)
    _append(spool, _records(21, 25))
    stats = log_stats(log)
    assert (stats["requests"], stats["candidates"], stats["unsealed"], stats["segments"]) == (25, 50, 5, 3)
    assert (before["requests"], before["unsealed"], before["segments"]) == (20, 20, 0)
    assert stats["by_kind"]["score"] == 2


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "not parquet"])
def test_a_damaged_segment_is_named_and_left_out_only_when_asked(log: Path, spool: Spool, damage: str) -> None:
    _append(spool, _records(1, 30))
    seal(spool)
    file = next(file for file in listed(log) if "date=2026-03-02" in file)
    path = log / file
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "flipped":
        flip(path)
    else:
        path.write_bytes(b"x" * path.stat().st_size)
    with LogReader(log) as reader, pytest.raises(LogError, match=file):
        list(reader.records())
    told: list[LogError] = []
    with LogReader(log, told.append) as reader:
        left = [one.ordinal for one in reader.records()]
    assert left == [i for i in range(1, 31) if i % 3 != 1]
    assert len(told) == 1 and file in str(told[0])
    if damage == "flipped":
        assert "rows 1 to 28" in str(told[0])


def test_changed_bytes_of_a_segment_are_an_error_or_harmless_but_never_wrong_records(log: Path, spool: Spool) -> None:
    _append(spool, _records(1, 6))
    seal(spool)
    path = log / next(listed(log))
    whole, refused, places = path.read_bytes(), 0, random.Random(7)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[places.randrange(len(whole))] ^= 1 << places.randrange(8)
        path.write_bytes(damaged)
        try:
            assert _read(log) == _records(1, 6)
        except LogError as error:
            assert path.name in str(error)
            refused += 1
    assert refused > 50


def test_a_damaged_row_of_the_spool_is_left_out_only_when_asked(log: Path, spool: Spool) -> None:
    _append(spool, _records(1, 5))
    with closing(apsw.Connection(str(log / SPOOL_NAME))) as database:
        database.execute("UPDATE records SET sha256 = x'00' WHERE ordinal = 3")
    seal(spool)
    with pytest.raises(LogError, match="row 3 is damaged"):
        _read(log)
    told: list[LogError] = []
    with LogReader(log, told.append) as reader:
        assert [one.ordinal for one in reader.records()] == [1, 2, 4, 5]
    assert "row 3" in str(told[0])


def _storm(folder: Path, seconds: float, pause_s: float = 0.0) -> None:
    """Polls readers while another process writes and seals as fast as it can, but for a pause after each group."""
    command = [sys.executable, "-m", "tests.log.read.storm", str(folder), str(pause_s)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(4)
        seen = polls = segments = 0
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s or polls < 3:
            with LogReader(folder) as reader:
                ids = [part.request_id for _, part in reader.fields(_Part, Where(after_ordinal=max(0, seen - 500)))]
                first = max(0, seen - 500)
                assert ids == [f"s-{i}" for i in range(first, first + len(ids))], "in order, nothing lost or doubled"
                assert reader.last_ordinal == first + len(ids) >= seen
                if polls % 4 == 0:
                    batches = list(reader.batches(["ordinal"]))
                    ordinals = sorted(row["ordinal"] for batch in batches for row in batch.to_pylist())
                    assert ordinals == list(range(1, reader.last_ordinal + 1))
                seen, segments, polls = reader.last_ordinal, len(reader.parts), polls + 1
        process.kill()
    assert segments > 4 and seen > 100
    with closing(Spool.open(folder)) as spool:
        seal(spool)
    whole = _read(folder)
    assert [one.request_id for one in whole] == [f"s-{i}" for i in range(len(whole))] and len(whole) >= seen
    assert all(len(one.candidates) == 4 for one in whole)
    report = verify(folder)
    assert report["ok"] and report["records"] == len(whole), report["problems"]


def test_a_reader_in_another_process_sees_everything_once_while_it_is_sealed(tmp_path: Path) -> None:
    _storm(tmp_path, 2, pause_s=0.02)


@pytest.mark.slow
@pytest.mark.long
def test_a_reader_holds_for_a_minute(tmp_path: Path) -> None:
    _storm(tmp_path, 60)

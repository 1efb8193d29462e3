"""Row groups are read ahead on threads: the same batches in the same order, few at a time, and no thread is left."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bon_server.core.errors import LogError
from bon_server.log.read.reader import LogReader
from bon_server.log.segments.columns import SCHEMA
from bon_server.log.segments.files import listed
from bon_server.log.segments.reader import AHEAD_BYTES, MOST_AHEAD, SegmentView
from bon_server.log.segments.where import EVERYTHING
from bon_server.log.spool.spool import Spool
from tests.log.records import record
from tests.log.seal.test_sealing import flip, seal

ROWS = 16
"""In a row group: those of one page."""


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of four row groups each, in the order of their dates."""
    folder = tmp_path_factory.mktemp("sealed")
    with pytest.MonkeyPatch.context() as patch, closing(Spool.open(folder)) as spool:
        patch.setattr("bon_server.log.segments.files.ROW_GROUP_RECORDS", ROWS)
        for day in range(3):
            date = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(days=day)
            spool.append([record(f"{day}-{i}", created_at=date) for i in range(4 * ROWS)])
            seal(spool)
    return folder


@pytest.fixture
def log(sealed: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sealed, tmp_path / "log"))


def _ordinals(batch: Any) -> list[int]:
    return sorted(batch.column("ordinal").to_pylist())


def _group(number: int) -> list[int]:
    """Ordinals of the n-th row group of the log."""
    return list(range(1 + number * ROWS, 1 + (number + 1) * ROWS))


def _readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("log-reader")]


def test_the_batches_are_those_of_the_files_in_their_order(log: Path) -> None:
    with LogReader(log) as reader:
        one_by_one = [batch for part in reader.parts for batch in part.batches(SCHEMA, EVERYTHING, _refuse)]
        ahead = list(reader.batches())
    assert ahead == one_by_one and [_ordinals(batch) for batch in ahead] == [_group(i) for i in range(12)]
    assert not _readers()


def _refuse(error: LogError) -> None:
    raise error


@pytest.mark.parametrize("read", [0, 1, 5])
def test_closing_early_leaves_no_thread(log: Path, read: int) -> None:
    with LogReader(log) as reader:
        batches = reader.batches(["ordinal"])
        for _ in range(read):
            next(batches)
        assert bool(_readers()) == (read > 0)
        assert isinstance(batches, Iterator)
        batches.close()  # type: ignore[attr-defined]
        assert not _readers()


@pytest.mark.parametrize(("room", "at_most"), [(AHEAD_BYTES, MOST_AHEAD), (2.5, 2), (0.5, 1)])
def test_few_are_read_ahead(log: Path, monkeypatch: pytest.MonkeyPatch, room: float, at_most: int) -> None:
    """room: in row groups."""
    size_bytes = pq.ParquetFile(log / next(listed(log))).metadata.row_group(0).total_byte_size
    monkeypatch.setattr("bon_server.log.segments.reader.AHEAD_BYTES", room * size_bytes)
    monkeypatch.setattr("pyarrow.cpu_count", lambda: 64)
    begun: list[int] = []
    read = SegmentView._batch

    def noting(part: SegmentView, parquet: Any, group: int, *rest: Any) -> Any:
        begun.append(group)
        return read(part, parquet, group, *rest)

    monkeypatch.setattr(SegmentView, "_batch", noting)
    with LogReader(log) as reader:
        for used, _ in enumerate(reader.batches(["ordinal"]), start=1):
            assert len(begun) <= used + at_most
    assert len(begun) == 12


def test_what_comes_before_damage_is_read_and_what_comes_after_when_asked(log: Path) -> None:
    file = list(listed(log))[1]
    flip(log / file, "candidates.list.element.text")  # in its first row group
    got: list[list[int]] = []
    with LogReader(log) as reader, pytest.raises(LogError, match=rf"{file}: row group 0 \(rows 65 to 80\)"):
        got.extend(_ordinals(batch) for batch in reader.batches())
    assert got == [_group(i) for i in range(4)] and not _readers()

    told: list[tuple[LogError, threading.Thread]] = []
    with LogReader(log, lambda error: told.append((error, threading.current_thread()))) as reader:
        got = [_ordinals(batch) for batch in reader.batches()]
    assert got == [_group(i) for i in range(12) if i != 4]
    assert len(told) == 1 and told[0][1] is threading.current_thread()


def test_a_missing_file_is_told_in_its_turn(log: Path) -> None:
    file = list(listed(log))[1]
    (log / file).unlink()
    got: list[list[int]] = []
    with LogReader(log) as reader, pytest.raises(LogError, match=f"{file} is missing"):
        got.extend(_ordinals(batch) for batch in reader.batches())
    assert got == [_group(i) for i in range(4)]

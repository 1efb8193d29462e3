"""The reader: a consistent prefix, and damage by file and row."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from bon_server.core.errors import LogError
from bon_server.core.types import Candidate, CandidateStatus, FinishReason, Kind, Outcome
from bon_server.log.read.reader import PAGE_ROWS, LogReader, Where
from bon_server.log.read.stats import log_stats
from bon_server.log.record import encode
from bon_server.log.spool.database import SPOOL_NAME
from bon_server.log.spool.spool import Spool
from tests.log.records import record, scored

NOBODY = 65534
ROWS = 2 * PAGE_ROWS + 3


def _filled(folder: Path, rows: int = ROWS) -> Path:
    with closing(Spool.open(folder)) as spool:
        spool.append([record(f"r{i}") for i in range(rows)])
    return folder


def _change(folder: Path, statement: str, *values: bytes) -> None:
    with closing(apsw.Connection(str(folder / SPOOL_NAME))) as database:
        database.execute(statement, values)


def test_all_records_in_commit_order_page_by_page(tmp_path: Path) -> None:
    with LogReader(_filled(tmp_path)) as reader:
        assert reader.last_ordinal == ROWS
        records = list(reader.records())
    assert records == [replace(record(f"r{i}"), ordinal=i + 1) for i in range(ROWS)]


def test_a_reader_sees_the_prefix_that_was_there_when_it_was_opened(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record(f"r{i}") for i in range(ROWS)])
        with LogReader(tmp_path) as reader:
            reading = reader.records()
            first = next(reading)
            spool.append([record("late")])
            assert [first.request_id, *(one.request_id for one in reading)] == [f"r{i}" for i in range(ROWS)]
        with LogReader(tmp_path) as reader:
            assert [one.request_id for one in reader.records(Where(after_ordinal=ROWS))] == ["late"]


def test_filters(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path)) as spool:
        spool.append(
            [
                record("a", outcome=Outcome.FAILED),
                record("a", attempt=2),
                record("b", kind=Kind.SCORE),
                record("c", outcome=Outcome.PARTIAL),
            ]
        )
    with LogReader(tmp_path) as reader:

        def ordinals(where: Where) -> list[int | None]:
            return [one.ordinal for one in reader.records(where)]

        assert ordinals(Where(request_id="a")) == [1, 2]
        assert ordinals(Where(request_id="a", outcome=Outcome.OK)) == [2]
        assert ordinals(Where(kind=Kind.GENERATE, after_ordinal=1)) == [2, 4]
        assert ordinals(Where(request_id="' OR 1")) == []


def test_no_log_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="nowhere holds no log"):
        LogReader(tmp_path / "nowhere")
    with pytest.raises(LogError, match="nowhere holds no log"):
        log_stats(tmp_path / "nowhere")


@contextmanager
def _as_somebody_without_privileges(folder: Path) -> Iterator[None]:
    """Gives them a folder and its files, and is them for a while; root would ignore permissions."""
    if os.geteuid():
        yield
        return
    for path in (folder, *folder.iterdir()):
        os.chown(path, NOBODY, -1)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_log_in_a_folder_that_cannot_be_written_to_can_be_read() -> None:
    with tempfile.TemporaryDirectory() as directory:
        folder = _filled(Path(directory) / "log", 3)
        Path(directory).chmod(0o755)
        with _as_somebody_without_privileges(folder):
            folder.chmod(0o500)
            with pytest.raises(PermissionError):
                (folder / "probe").touch()
            with LogReader(folder) as reader:
                assert len(list(reader.records())) == 3
            folder.chmod(0o700)
            with LogReader(folder) as reader:
                list(reader.records())
            folder.chmod(0o500)
            assert (folder / f"{SPOOL_NAME}-wal").exists(), "a reader leaves an empty one"
            with LogReader(folder) as reader:
                assert len(list(reader.records())) == 3
            folder.chmod(0o700)


def test_a_log_whose_making_was_interrupted_is_empty(tmp_path: Path) -> None:
    (tmp_path / SPOOL_NAME).touch()
    with LogReader(tmp_path) as reader:
        assert list(reader.records()) == []
    with closing(Spool.open(tmp_path)) as spool:
        assert spool.append([record()]) == [1]


def test_changed_content_is_named_by_file_and_row(tmp_path: Path) -> None:
    _filled(tmp_path, 5)
    flipped = encode(record("r2")).replace(b"answer 1", b"ansver 1")
    _change(tmp_path, "UPDATE records SET record = ? WHERE ordinal = 3", flipped)
    with LogReader(tmp_path) as reader:
        reading = reader.records()
        assert [next(reading).ordinal, next(reading).ordinal] == [1, 2]
        with pytest.raises(LogError, match=rf"{SPOOL_NAME}: row 3 is damaged"):
            next(reading)
    with pytest.raises(LogError, match="row 3"):
        log_stats(tmp_path)


def test_a_row_that_is_no_record_is_named_by_file_and_row(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"\x80").hexdigest()
    _filled(tmp_path, 3)
    _change(tmp_path, f"UPDATE records SET record = x'80', sha256 = x'{digest}' WHERE ordinal = 2")
    with LogReader(tmp_path) as reader, pytest.raises(LogError, match=rf"{SPOOL_NAME}: row 2 is not a record"):
        list(reader.records())


@pytest.mark.parametrize("offset", [0, 100, 4_096, 20_000, 60_000])
def test_overwritten_bytes_are_an_error_or_harmless_but_never_wrong_records(tmp_path: Path, offset: int) -> None:
    _filled(tmp_path)
    with (tmp_path / SPOOL_NAME).open("r+b") as file:
        file.seek(offset)
        file.write(b"\xa5" * 64)
    try:
        with LogReader(tmp_path) as reader:
            records = list(reader.records())
    except LogError as error:
        assert SPOOL_NAME in str(error)
    else:
        assert records == [replace(record(f"r{i}"), ordinal=i + 1) for i in range(ROWS)]


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    _filled(tmp_path)
    path = tmp_path / SPOOL_NAME
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(LogError, match=SPOOL_NAME), LogReader(tmp_path) as reader:
        list(reader.records())


def test_stats_count_everything(tmp_path: Path) -> None:
    candidates = (
        scored(0, 0.5),
        Candidate(1, CandidateStatus.NON_FINITE, finish_reason=FinishReason.STOP),
        Candidate(2, CandidateStatus.CANCELLED, finish_reason=FinishReason.CANCELLED),
    )
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record("a", candidates=candidates, outcome=Outcome.PARTIAL), record("b", kind=Kind.SCORE)])
        stats = log_stats(tmp_path)
    assert (stats["requests"], stats["candidates"], stats["unsealed"]) == (2, 5, 2)
    assert (stats["segments"], stats["feedback"]) == (0, 0)
    assert {name: n for name, n in stats["by_status"].items() if n} == {"scored": 3, "non_finite": 1, "cancelled": 1}
    assert {name: n for name, n in stats["by_kind"].items() if n} == {"generate": 1, "score": 1}
    assert {name: n for name, n in stats["by_outcome"].items() if n} == {"ok": 1, "partial": 1}
    assert stats["bytes"] >= (tmp_path / SPOOL_NAME).stat().st_size > 0

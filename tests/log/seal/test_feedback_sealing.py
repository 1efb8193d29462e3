"""Sealed feedback is read, joined and known by its id as before; a crash in the middle changes nothing."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import apsw
import pyarrow.parquet as pq
import pytest

from bon_server.core.errors import LogError
from bon_server.log import catalog
from bon_server.log.feedback import Feedback, Recorded, record_feedback
from bon_server.log.read.feedback import FeedbackReader
from bon_server.log.read.stats import log_stats
from bon_server.log.seal.sealing import waiting
from bon_server.log.segments.files import listed
from bon_server.log.spool.database import SPOOL_NAME
from bon_server.log.spool.spool import Spool
from tests.log.observations import observation
from tests.log.records import ODD_TEXT, record
from tests.log.seal.test_sealing import flip, seal

VALUES: list[bool | float | str] = [True, False, 0.0, -1.5, float("inf"), "", ODD_TEXT, "1.0"]


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """An open spool in `tmp_path`."""
    with closing(Spool.open(tmp_path)) as spool:
        yield spool


def _all(folder: Path) -> list[Feedback]:
    with FeedbackReader(folder) as reader:
        return list(reader.all())


def _observe(spool: Spool, *feedback: Feedback) -> None:
    for one in feedback:
        assert record_feedback(spool, one) is Recorded.NEW


def test_sealed_feedback_is_what_was_observed(tmp_path: Path, spool: Spool) -> None:
    said = [
        observation(
            f"f{i}",
            f"r{i}",
            value=value,
            candidate_index=i or None,
            tags={"by": ODD_TEXT},
            principal="ann",
            created_at=datetime(2026, 1, 1 + i % 2, tzinfo=UTC),
        )
        for i, value in enumerate(VALUES)
    ]
    _observe(spool, *said)
    result = seal(spool)
    assert (result.feedback, result.records, result.left) == (len(said), 0, 0)
    assert [file.split("/")[:2] for file in result.files] == [
        ["feedback", "date=2026-01-01"],
        ["feedback", "date=2026-01-02"],
    ]
    assert _all(tmp_path) == said
    assert [type(one.value) for one in _all(tmp_path)] == [type(value) for value in VALUES]
    _observe(spool, observation("later"))
    assert _all(tmp_path) == [*said, observation("later")]
    assert log_stats(tmp_path)["feedback"] == len(said) + 1
    assert seal(spool).feedback == 1 and log_stats(tmp_path)["feedback"] == len(said) + 1
    for path in (tmp_path / "feedback").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.is_file() else 0o700), path


def test_sealed_feedback_is_joined(tmp_path: Path, spool: Spool) -> None:
    spool.append([record(f"r{i}", attempt=attempt) for i in range(5) for attempt in (1, 2)])
    _observe(spool, *(observation(f"a{i}", f"r{i}", attempt=1 + i % 2) for i in range(5)))
    seal(spool)
    _observe(spool, observation("later", "r1", attempt=2), observation("other", "r1", principal="ann"))
    with FeedbackReader(tmp_path) as reader:
        ids = {(i, attempt): [one.feedback_id for one in reader.of(record(f"r{i}", attempt=attempt))]
               for i in range(5) for attempt in (1, 2)}  # fmt: skip
        assert ids[1, 2] == ["a1", "later"] and ids[1, 1] == [] and ids[0, 1] == ["a0"] and ids[4, 1] == ["a4"]
        seal(spool)
        assert [one.feedback_id for one in reader.of(record("r1", attempt=2))] == ["a1", "later"], "sealed meanwhile"


def test_ids_of_sealed_feedback_are_known(tmp_path: Path, spool: Spool) -> None:
    said = observation("f", value=1.0, tags={"a": "1", "b": "2"})
    _observe(spool, said)
    seal(spool)
    again = observation("f", value=1.0, tags={"b": "2", "a": "1"}, created_at=datetime.now(UTC), attempt=2)
    assert record_feedback(spool, again) is Recorded.REPLAYED
    assert record_feedback(spool, observation("f", value=True, tags=said.tags)) is Recorded.TAKEN
    assert record_feedback(spool, observation("f", value=1.0, tags=said.tags, principal="ann")) is Recorded.NEW
    assert len(_all(tmp_path)) == 2


def test_ids_are_forgotten_after_the_window(spool: Spool) -> None:
    _observe(spool, observation("f"))
    seal(spool, replay_window_s=1e-6)
    seal(spool)
    assert record_feedback(spool, observation("f", value=False)) is Recorded.NEW


def test_feedback_counts_for_when_to_seal(tmp_path: Path, spool: Spool) -> None:
    with closing(apsw.Connection(str(tmp_path / SPOOL_NAME))) as reading:
        assert waiting(reading) == (0, None)
        _observe(spool, observation())
        size, oldest_us = waiting(reading)
        assert size > 0 and oldest_us == int(observation().created_at.timestamp() * 1e6)
        seal(spool)
        assert waiting(reading) == (0, None)


def test_damaged_feedback_stays_in_the_spool(tmp_path: Path, spool: Spool) -> None:
    _observe(spool, *(observation(f"f{i}") for i in range(4)))
    with closing(apsw.Connection(str(tmp_path / SPOOL_NAME))) as database:
        database.execute("UPDATE feedback SET sha256 = x'00' WHERE ordinal = 2")
    result = seal(spool)
    assert (result.feedback, result.left) == (3, 1)
    assert seal(spool).left == 0, "and is not tried again and again"
    with pytest.raises(LogError, match="feedback 2 is damaged"):
        _all(tmp_path)


class _Crash(BaseException):
    """The process ends here."""


def _crash(*args: object) -> None:
    raise _Crash


@pytest.mark.parametrize("where", ["SegmentsWriter", "catalog_entry", "catalog.complete"])
def test_a_crash_at_any_step_is_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    said = [observation(f"f{i}", created_at=datetime(2026, 1, 1 + i % 2, tzinfo=UTC)) for i in range(9)]
    with closing(Spool.open(tmp_path)) as spool:
        _observe(spool, *said)
        with monkeypatch.context() as patch, pytest.raises(_Crash):
            patch.setattr(f"bon_server.log.seal.sealing.{where}", _crash)
            seal(spool)
        assert _all(tmp_path) == said
    with closing(Spool.open(tmp_path)) as spool:
        _observe(spool, observation("later"))
        assert record_feedback(spool, said[0]) is Recorded.REPLAYED
        seal(spool)
        with closing(apsw.Connection(str(tmp_path / SPOOL_NAME))) as database:
            files = {one.file for one in catalog.segments(database, stream=catalog.FEEDBACK)}
    assert files == set(listed(tmp_path, "feedback")) and len(files) == 3
    assert _all(tmp_path) == [*said, observation("later")]


def test_big_feedback_is_sealed_in_steps(tmp_path: Path, spool: Spool) -> None:
    said = [observation(f"f{i}", value="x" * 100) for i in range(20)]
    _observe(spool, *said)
    assert len(seal(spool, seal_bytes=500).files) > 3
    assert _all(tmp_path) == said


def test_reading_while_it_is_sealed(tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bon_server.log.read.feedback.PAGE_ROWS", 3)
    said = [observation(f"f{i}") for i in range(20)]
    _observe(spool, *said[:10])
    with FeedbackReader(tmp_path) as reader:
        one_by_one = reader.all()
        got = [next(one_by_one) for _ in range(4)]
        seal(spool)
        _observe(spool, *said[10:])
        got += one_by_one
    assert got == said


def test_a_copy_without_its_spool_and_other_writers(tmp_path: Path, spool: Spool) -> None:
    _observe(spool, observation("here"))
    seal(spool)
    (file,) = listed(tmp_path, "feedback")
    there = file.replace("writer=", "writer=0other-")
    (tmp_path / there).parent.mkdir(parents=True)
    table = pq.read_table(tmp_path / file, partitioning=None)
    table = table.set_column(1, "feedback_id", [["there"]])
    pq.write_table(table, tmp_path / there)
    assert [one.feedback_id for one in _all(tmp_path)] == ["there", "here"]
    copy = tmp_path.parent / f"{tmp_path.name}-copy"
    (copy / file).parent.mkdir(parents=True)
    (copy / file).write_bytes((tmp_path / file).read_bytes())
    assert [one.feedback_id for one in _all(copy)] == ["here"]
    with FeedbackReader(tmp_path) as reader:
        assert reader.count() == 2


def test_a_damaged_feedback_segment_is_named_or_left_out(tmp_path: Path, spool: Spool) -> None:
    _observe(spool, observation("lost", created_at=datetime(2026, 1, 1, tzinfo=UTC)), observation("kept"))
    seal(spool)
    flip(tmp_path / next(listed(tmp_path, "feedback")), "name")
    with pytest.raises(LogError, match=r"feedback/date=2026-01-01/.*\.parquet"):
        _all(tmp_path)
    found: list[LogError] = []
    with FeedbackReader(tmp_path, found.append) as reader:
        assert [one.feedback_id for one in reader.all()] == ["kept"]
    assert len(found) == 1

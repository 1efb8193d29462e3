"""Sealed feedback is published as records are: once, whole, described, and removed here only when it is not needed."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from bon_server.core.errors import LogError
from bon_server.log import published
from bon_server.log.feedback import Recorded, record_feedback
from bon_server.log.publish.publisher import publish_all
from bon_server.log.publish.publishing import Publishing
from bon_server.log.publish.store import Store
from bon_server.log.read.feedback import FeedbackReader
from bon_server.log.read.snapshot import make_snapshot
from bon_server.log.seal.sealing import seal
from bon_server.log.segments.files import listed
from bon_server.log.spool.database import SPOOL_NAME, open_for_reading
from bon_server.log.spool.spool import Spool
from bon_server.log.verify.verify import verify
from bon_server.system.files import sha256_of
from tests.log.observations import observation
from tests.log.publish.faulty_store import Fault, FaultyStore
from tests.log.publish.publishing import config, download, put_object
from tests.log.publish.publishing import faulty as faulty
from tests.log.publish.publishing import s3_port as s3_port
from tests.log.publish.publishing import soon as soon
from tests.log.publish.publishing import spool as spool
from tests.log.records import record


def _fill(spool: Spool, *days: int, replay_window_s: float = 3_600.0) -> None:
    """A record `r1` and an observation `f1` of it on each day, each kind in a segment of its own."""
    for day in days:
        when = datetime(2026, 1, day, tzinfo=UTC)
        spool.append([record(f"r{day}", created_at=when)])
        assert record_feedback(spool, observation(f"f{day}", f"r{day}", created_at=when)) is Recorded.NEW
        seal(spool, 1 << 30, replay_window_s)


def _feedback(folder: Path) -> list[str]:
    with FeedbackReader(folder) as reader:
        return [one.feedback_id for one in reader.all()]


def _published(faulty: FaultyStore, tmp_path: Path) -> Path:
    """What is in the store, downloaded and verified."""
    copy = download(faulty.upstream_port, tmp_path.name, tmp_path / f"copy{len(list(tmp_path.iterdir()))}")
    assert verify(copy)["problems"] == []
    return copy


def _days(folder: Path, kind: str) -> list[int]:
    return [int(file.split("date=2026-01-")[1][:2]) for file in listed(folder, kind)]


def test_feedback_is_published_with_its_descriptions(faulty: FaultyStore, tmp_path: Path, spool: Spool) -> None:
    _fill(spool, 1, 2)
    result = publish_all(spool, config(faulty, tmp_path), patience_s=0)
    assert (result.published, result.waiting, result.failure) == (4, 0, None)
    copy = _published(faulty, tmp_path)
    assert _feedback(copy) == ["f1", "f2"]
    report = verify(copy)
    assert (report["records"], report["feedback"]) == (2, 2)
    for file in listed(copy, "feedback"):
        assert (copy / file).read_bytes() == (tmp_path / "log" / file).read_bytes()
        described = json.loads((copy / published.description_of(file)).read_text())
        assert (described["sha256"], described["rows"]) == (sha256_of(copy / file), 1)
    joined = (
        duckdb.connect()
        .execute(
            f"SELECT request_id, f.feedback_id FROM '{copy}/segments/**/*.parquet' r"
            f" JOIN '{copy}/feedback/**/*.parquet' f USING (principal, request_id, attempt) ORDER BY ALL"
        )
        .fetchall()
    )
    assert joined == [("r1", "f1"), ("r2", "f2")]
    faulty.requests.clear()
    assert publish_all(spool, config(faulty, tmp_path), patience_s=0).published == 0
    assert faulty.requests == []


@pytest.mark.parametrize("fault", ["503", "404", "expired", "reset", "lost", "hang"])
@pytest.mark.parametrize("at", [2, 3])
def test_every_fault_is_got_over(faulty: FaultyStore, tmp_path: Path, spool: Spool, fault: Fault, at: int) -> None:
    """at: the segment of feedback, or its description; the first two calls are about records."""
    _fill(spool, 1)
    faulty.next_faults(*([None] * at), fault, fault)
    with closing(open_for_reading(tmp_path / "log" / SPOOL_NAME)) as reading:
        trying = Publishing(
            spool, reading, config(faulty, tmp_path, publish_timeout_s=0.3 if fault == "hang" else 30.0)
        )
        assert not trying.round()
        assert (trying.backlog.segments, trying.published) == (1, 1)
        assert "feedback/date=" in str(trying.last_failure)
        while not trying.round():
            pass
        assert (trying.backlog.segments, trying.published) == (0, 2)
    assert _feedback(_published(faulty, tmp_path)) == ["f1"]


def test_what_is_there_with_other_content_is_never_overwritten(
    faulty: FaultyStore, tmp_path: Path, spool: Spool
) -> None:
    _fill(spool, 1, 2)
    where = config(faulty, tmp_path)
    first = next(listed(tmp_path / "log", "feedback"))
    assert Store(str(where.publish), where.publish_options, 1.0).put(first, b"other")
    result = publish_all(spool, where, patience_s=30)
    assert (result.published, result.waiting) == (3, 1) and first in str(result.failure)
    assert (download(faulty.upstream_port, tmp_path.name, tmp_path / "copy") / first).read_bytes() == b"other"


def test_local_feedback_goes_after_what_it_is_about(faulty: FaultyStore, tmp_path: Path, spool: Spool) -> None:
    log, where = tmp_path / "log", config(faulty, tmp_path, publish_keep_local=False)
    _fill(spool, 1, 2, replay_window_s=0)
    _fill(spool, 3)
    make_snapshot(log, "pins")
    _fill(spool, 4, 5, replay_window_s=0)
    faulty.fault = lambda method, path: "503" if method == "PUT" and "feedback" in path else None
    publish_all(spool, where, patience_s=0)
    assert _days(log, "feedback") == [1, 2, 3, 4, 5], "nothing goes while anything is not confirmed"
    faulty.fault = lambda method, path: None
    assert publish_all(spool, where, patience_s=0).removed == 1
    assert (_days(log, "segments"), _days(log, "feedback")) == ([1, 2, 3, 5], [1, 2, 3, 4, 5]), (
        "the snapshot pins 1 to 3"
    )
    (log / "snapshots" / "pins.json").unlink()
    assert publish_all(spool, where, patience_s=0).removed == 4
    assert (_days(log, "segments"), _days(log, "feedback")) == ([3, 5], [3, 4, 5]), "3 still answers retries"
    assert record_feedback(spool, observation("f3", "r3")) is Recorded.REPLAYED
    assert _feedback(log) == ["f3", "f4", "f5"] and verify(log)["problems"] == []
    assert _feedback(_published(faulty, tmp_path)) == [f"f{day}" for day in range(1, 6)]
    _fill(spool, 6)
    assert publish_all(spool, where, patience_s=0).published == 2, "their numbers and names are new"


def test_local_feedback_stays_when_the_object_has_changed(faulty: FaultyStore, tmp_path: Path, spool: Spool) -> None:
    _fill(spool, 1, 2, replay_window_s=0)
    publish_all(spool, config(faulty, tmp_path), patience_s=0)
    first = next(listed(tmp_path / "log", "feedback"))
    put_object(faulty.upstream_port, tmp_path.name, first, b"changed")
    result = publish_all(spool, config(faulty, tmp_path, publish_keep_local=False), patience_s=0)
    assert (result.removed, _days(tmp_path / "log", "feedback")) == (1, [1, 2]), "the record's copy"
    assert first in str(result.failure) and "has changed" in str(result.failure)


def test_a_crash_while_removing_is_cleared_away(
    tmp_path: Path, spool: Spool, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, where = tmp_path / "log", config(faulty, tmp_path, publish_keep_local=False)
    _fill(spool, 1, 2, replay_window_s=0)

    def crash(path: Path) -> None:
        if "feedback" in str(path):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("bon_server.log.publish.publishing._unlink", crash)
        publish_all(spool, where, patience_s=0)
    assert _days(log, "feedback") == [1, 2] and _feedback(log) == ["f2"]
    report = verify(log)
    assert report["ok"] and {note["kind"] for note in report["notes"]} == {"removed_segment"}
    publish_all(spool, where, patience_s=0)
    assert _days(log, "feedback") == [2] and verify(log)["notes"] == []


def test_damage_to_a_copy_is_named(faulty: FaultyStore, tmp_path: Path, spool: Spool) -> None:
    _fill(spool, 1, 2, 3)
    publish_all(spool, config(faulty, tmp_path), patience_s=0)
    copy = _published(faulty, tmp_path)
    first, second, third = listed(copy, "feedback")
    (copy / first).unlink()
    (copy / published.description_of(second)).write_text("{")
    (copy / third).write_bytes((copy / third).read_bytes() + b"x")
    found = {(problem["kind"], problem["file"]) for problem in verify(copy)["problems"]}
    assert {("segment_missing", first), ("description_damaged", "feedback"), ("segment_size", third)} <= found
    with pytest.raises(LogError, match="no description of a segment"):
        _feedback(copy)
    damaged: list[LogError] = []
    with FeedbackReader(copy, damaged.append) as reader:
        assert [one.feedback_id for one in reader.all()] == ["f2"]
    assert len(damaged) >= 2

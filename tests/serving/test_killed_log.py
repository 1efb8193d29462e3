"""That the kill tests would notice: one fault each, planted in a log that was sealed, published and expired."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apsw
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.config.settings import LogConfig
from bon_server.log.feedback import Feedback, record_feedback
from bon_server.log.publish.publisher import publish_all
from bon_server.log.remove.expire import Retention, expire
from bon_server.log.seal.sealing import seal
from bon_server.log.spool.database import SPOOL_NAME
from bon_server.log.spool.spool import Spool
from tests.log.records import record
from tests.serving.killed_log import KilledLog, Told

WINDOW = timedelta(seconds=60)
NOW = datetime.now(UTC)
OLD, SEALED, NEW = "old", "sealed", "new"
"""Request ids: in a file that has expired, in one that has not, and in the spool."""


def _answer(request_id: str, *, text: str = "answer 0", replayed: bool = False) -> pb.GenerateResponse:
    return pb.GenerateResponse(request_id=request_id, best=pb.Candidate(index=0, text=text), replayed=replayed)


def _add(log: Path, request_id: str, created_at: datetime, attempt: int = 1) -> None:
    with closing(Spool.open(log)) as spool:
        spool.append([record(request_id, created_at=created_at, selected_index=0, attempt=attempt)])


@pytest.fixture
def killed(tmp_path: Path) -> tuple[KilledLog, Told]:
    """A log with one record in each place, and what clients were told of it."""
    killed, told = KilledLog(tmp_path, WINDOW), Told()
    for number, request_id in enumerate((OLD, SEALED, NEW)):
        _add(killed.folder, request_id, NOW)
        told.answered(_answer(request_id))
        with closing(Spool.open(killed.folder)) as spool:
            if number < 2:
                seal(spool, 1 << 20, WINDOW.total_seconds())
                publish_all(spool, LogConfig(publish=killed.published.as_uri()), patience_s=0)
            if number == 1:
                killed.keep(killed.state())
                expire(spool, Retention(days=None, bytes=max(one.bytes for one in killed.state().segments)))
    with closing(Spool.open(killed.folder)) as spool:
        seen = Feedback(
            feedback_id="f", request_id=NEW, attempt=1, candidate_index=None, name="n", value=True, created_at=NOW
        )
        record_feedback(spool, seen)
    told.feedback.add("f")
    return killed, told


def test_without_a_fault_everything_is_found(killed: tuple[KilledLog, Told]) -> None:
    log, told = killed
    found = log.check(told)
    assert (found["acknowledged"], found["rows"], found["in_expired_files"], found["feedback"]) == (3, 3, 1, 1)
    assert (found["segments_in_log"], found["segments_expired"], found["segments_published"]) == (1, 1, 2)
    log.check_published(log.state())
    assert log.check(told) == found, "also when asked again"


def test_what_has_expired_may_be_sampled_again_and_what_is_past_its_window(killed: tuple[KilledLog, Told]) -> None:
    log, told = killed
    _add(log.folder, OLD, NOW)
    _add(log.folder, NEW, NOW + WINDOW, attempt=2)
    assert log.check(told)["sampled_again"] == 2


def _lost(log: KilledLog, told: Told) -> None:
    told.answered(_answer("never committed"))


def _other_winner(log: KilledLog, told: Told) -> None:
    told.answered(_answer(SEALED, text="answer 1"))


def _other_replay(log: KilledLog, told: Told) -> None:
    told.answered(_answer(SEALED, text="answer 1", replayed=True))
    told.answered(_answer(SEALED))


def _sampled_again(log: KilledLog, told: Told) -> None:
    _add(log.folder, NEW, NOW + WINDOW / 2, attempt=2)


def _lost_feedback(log: KilledLog, told: Told) -> None:
    told.feedback.add("g")


def _refused_feedback(log: KilledLog, told: Told) -> None:
    told.unknown.append(SEALED)


def _segment_gone(log: KilledLog, told: Told) -> None:
    (log.folder / log.state().segments[0].file).unlink()


def _changed_copy(log: KilledLog, told: Told) -> None:
    copy = log.published / log.state().published[0]
    copy.write_bytes(copy.read_bytes()[:-1] + b"?")


def _missing_copy(log: KilledLog, told: Told) -> None:
    (log.published / log.state().published[0]).unlink()


def _row_gone(log: KilledLog, told: Told) -> None:
    with closing(apsw.Connection(str(log.folder / SPOOL_NAME))) as database:
        database.execute("DELETE FROM records")


FAULTS: dict[str, tuple[Callable[[KilledLog, Told], None], str]] = {
    "an acknowledged answer that is not there": (_lost, "acknowledged and lost"),
    "another winner than the one told": (_other_winner, "acknowledged and lost, or with another winner"),
    "a replay with another answer": (_other_replay, "replayed with another answer"),
    "sampled again in its window": (_sampled_again, "in the log twice"),
    "a row of the spool that is gone": (_row_gone, "acknowledged and lost"),
    "a lost observation": (_lost_feedback, "lost observations"),
    "an observation refused on a request that is there": (_refused_feedback, "observations refused"),
    "a segment that is gone and has not expired": (_segment_gone, "segment_missing"),
    "a published copy that has changed": (_changed_copy, "published with other content"),
    "a published copy that is gone": (_missing_copy, "is not there"),
}


@pytest.mark.parametrize(("plant", "said"), FAULTS.values(), ids=FAULTS)
def test_each_fault_is_found(
    killed: tuple[KilledLog, Told], plant: Callable[[KilledLog, Told], None], said: str
) -> None:
    log, told = killed
    log.check(told)
    plant(log, told)
    with pytest.raises(AssertionError, match=said):
        log.check(told)

"""What callers were told against a real log that lacks something, or has too much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.core.types import Kind, Outcome
from bon_server.log.feedback import Feedback, record_feedback
from bon_server.log.record import Record
from bon_server.log.seal.sealing import seal
from bon_server.log.spool.spool import Spool
from bon_server.loop.soak import checks
from bon_server.loop.soak.ledger import Differences, Ledger, Winner, compare
from tests.log.records import record


@pytest.fixture(params=["in the spool", "sealed"])
def log(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Answers run-0 to run-9, an attempt that failed before one, scores, another run's answer, and an observation."""
    records = [answered(f"run-{i}", i % 2) for i in range(10)]
    failed = replace(answered("run-3", 0), outcome=Outcome.CANCELLED, selected_index=None)
    records[3] = replace(records[3], attempt=2)
    scores = replace(answered("run-10", 0), kind=Kind.SCORE, selected_index=None)
    with closing(Spool.open(tmp_path / "log")) as spool:
        spool.append([failed, *records, scores, answered("other-1", 0)])
        observation = Feedback(
            feedback_id="run-f1",
            request_id="run-1",
            attempt=1,
            candidate_index=None,
            name="rating",
            value=True,
            created_at=datetime.now(UTC),
        )
        record_feedback(spool, observation)
        if request.param == "sealed":
            seal(spool, 1 << 20, 3600.0)
    yield tmp_path / "log"


def answered(request_id: str, index: int) -> Record:
    """A record with a winner."""
    return record(request_id, rewards=(0.5 - index, 0.25), selected_index=index)


@pytest.fixture
def ledger() -> Ledger:
    """What the callers of that log were told."""
    ledger = Ledger("run")
    for i in range(10):
        best = pb.Candidate(index=i % 2, text=f"answer {i % 2}")
        ledger.answered(pb.GenerateResponse(request_id=f"run-{i}", best=best))
    ledger.scored(pb.ScoreResponse(request_id="run-10"))
    ledger.feedback.add("run-f1")
    return ledger


def failed(differences: Differences) -> dict[str, str]:
    """What does not pass, with its detail."""
    return {check.name: check.detail for check in checks.log_complete(differences) if not check.passed}


def test_a_log_that_is_complete(log: Path, ledger: Ledger) -> None:
    differences = compare(log, ledger)
    assert differences == Differences(answered=11)
    assert failed(differences) == {}


def test_what_is_logged_and_was_not_acknowledged_is_fine(log: Path, ledger: Ledger) -> None:
    del ledger.acknowledged["run-5"]
    ledger.feedback.clear()
    assert failed(compare(log, ledger)) == {}


def test_an_id_that_is_missing(log: Path, ledger: Ledger) -> None:
    ledger.answered(pb.GenerateResponse(request_id="run-99"))
    ledger.feedback.add("run-f9")
    found = compare(log, ledger)
    assert failed(found) == {"missing from the log": "run-99", "feedback missing from the log": "run-f9"}


def test_an_id_whose_only_row_is_no_answer(log: Path, ledger: Ledger) -> None:
    with closing(Spool.open(log)) as spool:
        spool.append([replace(answered("run-98", 0), outcome=Outcome.FAILED, selected_index=None)])
    ledger.answered(pb.GenerateResponse(request_id="run-98"))
    assert failed(compare(log, ledger)) == {"missing from the log": "run-98"}


@pytest.mark.parametrize("acknowledged", [True, False])
def test_an_id_that_is_answered_twice(log: Path, ledger: Ledger, acknowledged: bool) -> None:
    with closing(Spool.open(log)) as spool:
        spool.append([replace(answered("run-7", 1), attempt=2)])
    if not acknowledged:
        del ledger.acknowledged["run-7"]
    assert failed(compare(log, ledger)) == {"twice in the log": "run-7"}


@pytest.mark.parametrize("told", [Winner.of(0, "answer 0"), Winner.of(1, "another answer"), None])
def test_another_winner(log: Path, ledger: Ledger, told: Winner | None) -> None:
    ledger.acknowledged["run-1"] = told
    assert failed(compare(log, ledger)) == {"other winner in the log": "run-1"}

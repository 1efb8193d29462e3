"""What is erased goes from the published table too, which is whole and without doubles whenever that is interrupted."""

from __future__ import annotations

from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bon_server.config.settings import LogConfig
from bon_server.core.errors import LogError
from bon_server.core.types import Message
from bon_server.log.feedback import record_feedback
from bon_server.log.publish.publisher import publish_all
from bon_server.log.read.feedback import FeedbackReader
from bon_server.log.read.reader import LogReader
from bon_server.log.remove.erase import Erased, erase
from bon_server.log.remove.expire import Retention, expire
from bon_server.log.remove.rewrite import Match
from bon_server.log.seal.sealing import seal
from bon_server.log.segments.files import listed
from bon_server.log.spool.spool import Spool
from bon_server.log.verify.verify import verify
from tests.command import run_bon
from tests.log.observations import observation
from tests.log.publish.faulty_store import Fault, FaultyStore, uri
from tests.log.publish.publishing import config, download, put_object
from tests.log.publish.publishing import faulty as faulty
from tests.log.publish.publishing import s3_port as s3_port
from tests.log.publish.publishing import soon as soon
from tests.log.records import record
from tests.log.remove.test_erase import holding

SECRET = "xyzzy-the-secret"
MATCH = Match(tag=("user", SECRET))
KEPT = ["r1", "r2"]


def _fill(log: Path, where: LogConfig, replay_window_s: float = 3_600.0) -> None:
    """Two published sealings of a day each: a record and a secret one, each observed."""
    with closing(Spool.open(log)) as spool:
        for day in (1, 2):
            when = datetime(2026, 1, day, tzinfo=UTC)
            spool.append([record(f"r{day}", created_at=when), _secret(f"s{day}", when)])
            for name in (f"r{day}", f"s{day}"):
                record_feedback(spool, observation(name, name, created_at=when, value=f"of {name}"))
            seal(spool, 1 << 30, replay_window_s)
        assert publish_all(spool, where, patience_s=0).failure is None


def _secret(name: str, when: datetime) -> Any:
    prompt = (Message("user", f"{SECRET} asks"),)
    return record(name, created_at=when, prompt_messages=prompt, tags={"user": SECRET})


def _read(folder: Path) -> tuple[list[str], list[str]]:
    """Ids of records and of observations, sorted."""
    with LogReader(folder) as reader, FeedbackReader(folder) as observed:
        return sorted(one.request_id for one in reader.records()), sorted(one.feedback_id for one in observed.all())


def _copy(faulty: FaultyStore, tmp_path: Path) -> Path:
    return download(faulty.upstream_port, tmp_path.name, tmp_path / f"copy{len(list(tmp_path.iterdir()))}")


def _check_table(copy: Path) -> None:
    """Nothing of the secret, the rest once, and everything as it is described."""
    assert verify(copy)["problems"] == []
    assert _read(copy) == (KEPT, KEPT)
    assert holding(copy, SECRET) == holding(copy, "of s1") == []


def test_the_published_copies_are_replaced(faulty: FaultyStore, tmp_path: Path) -> None:
    log, where = tmp_path / "log", config(faulty, tmp_path)
    _fill(log, where)
    result = erase(log, MATCH, where)
    assert (result["records"], result["feedback"], result["not_searched"]) == (2, 2, [])
    assert result["republished"] == result["rewritten"][2:] + result["rewritten"][:2], "records and feedback"
    _check_table(_copy(faulty, tmp_path))
    for file in listed(log):
        assert (log / file).read_bytes() == (_copy(faulty, tmp_path) / file).read_bytes()
    faulty.requests.clear()
    again = erase(log, MATCH, where)
    assert again == Erased(
        principals=[],
        records=0,
        feedback=0,
        scores=0,
        rewritten=[],
        stale_snapshots=[],
        republished=[],
        not_searched=[],
    )
    assert {method for method, _, _ in faulty.requests} == {"GET"}
    with closing(Spool.open(log)) as spool:
        spool.append([record("later")])
        seal(spool, 1 << 30, 0)
        published = publish_all(spool, config(faulty, tmp_path, publish_keep_local=False), patience_s=0)
        assert (published.published, published.waiting, published.failure) == (1, 0, None)


def test_without_a_place_it_is_said_what_was_not_searched(faulty: FaultyStore, tmp_path: Path) -> None:
    log, where = tmp_path / "log", config(faulty, tmp_path)
    _fill(log, where)
    assert erase(log, MATCH)["not_searched"] == [uri(tmp_path.name)]
    assert len(holding(_copy(faulty, tmp_path), SECRET)) == 2
    assert len(erase(log, MATCH, where)["republished"]) == 4, "also when nothing is left to be erased here"
    _check_table(_copy(faulty, tmp_path))


def test_copies_that_are_no_longer_here_are_searched(faulty: FaultyStore, tmp_path: Path) -> None:
    log, where = tmp_path / "log", config(faulty, tmp_path, publish_keep_local=False)
    _fill(log, where, replay_window_s=0)
    with closing(Spool.open(log)) as spool:
        assert len(list(listed(log))) == len(list(listed(log, "feedback"))) == 1, "the first were removed"
        about = observation("late", "s1", created_at=datetime(2026, 1, 3, tzinfo=UTC), value=f"{SECRET} was wrong")
        record_feedback(spool, about)
    result = erase(log, MATCH, where)
    assert (result["records"], result["feedback"], len(result["republished"])) == (2, 3, 4)
    assert holding(log, SECRET) == [], "late feedback is about a record that only the store has"
    _check_table(_copy(faulty, tmp_path))
    assert list(log.rglob("*.tmp")) == []


def test_what_expired_here_is_erased_there(faulty: FaultyStore, tmp_path: Path) -> None:
    log, where = tmp_path / "log", config(faulty, tmp_path)
    _fill(log, where)
    with closing(Spool.open(log)) as spool:
        assert expire(spool, Retention(1, None), datetime(2026, 1, 2, tzinfo=UTC) + timedelta(days=9)).segments == 4
    assert erase(log, MATCH, where)["records"] == 2
    _check_table(_copy(faulty, tmp_path))


@pytest.mark.parametrize("keep_local", [True, False])
@pytest.mark.parametrize("fault", ["503", "lost"])
def test_it_is_finished_after_every_interruption(
    faulty: FaultyStore, tmp_path: Path, fault: Fault, keep_local: bool
) -> None:
    """Whether the store did what it was asked (`lost`) or not (`503`) when the call failed."""
    log = tmp_path / "log"
    where = config(faulty, tmp_path, publish_keep_local=keep_local)
    _fill(log, where, replay_window_s=0)
    interruptions = 0
    for calls in range(100):
        faulty.next_faults(*([None] * calls), fault)
        with suppress(LogError):
            erase(log, MATCH, where)
            break
        interruptions += 1
        faulty.fault = lambda method, path: None
        copy = _copy(faulty, tmp_path)
        try:
            ids = _read(copy)
        except LogError:
            assert not verify(copy)["ok"], "an object and its description are of different versions"
        else:
            assert all(len(set(found)) == len(found) and set(KEPT) <= set(found) for found in ids)
    assert interruptions >= (2 if fault == "lost" else 1)
    _check_table(_copy(faulty, tmp_path))


@pytest.mark.parametrize("keep_local", [True, False])
@pytest.mark.parametrize("puts", range(5))
def test_another_erasure_finishes_one_that_was_interrupted(
    faulty: FaultyStore, tmp_path: Path, keep_local: bool, puts: int
) -> None:
    """Between the replacements of an object and of its description each shows another version, and here is a third."""
    log = tmp_path / "log"
    where = config(faulty, tmp_path, publish_keep_local=keep_local)
    _fill(log, where, replay_window_s=0)
    faulty.next_faults(*([None] * puts), "503")
    with pytest.raises(LogError, match="not complete"):
        erase(log, MATCH, where)
    faulty.fault = lambda method, path: None
    erase(log, Match(request_id="r2"))
    with suppress(LogError):  # a copy that is only there is left to the erasure that was interrupted
        erase(log, Match(request_id="r1"), where)
    for match in (MATCH, Match(request_id="r2"), Match(request_id="r1")):
        erase(log, match, where)
    copy = _copy(faulty, tmp_path)
    assert verify(copy)["problems"] == [] and _read(copy) == ([], [])


def test_another_segment_under_its_name_is_no_older_version(faulty: FaultyStore, tmp_path: Path) -> None:
    log, where = tmp_path / "log", config(faulty, tmp_path)
    _fill(log, where)
    first, second = listed(log)
    other = (log / second).read_bytes()
    put_object(faulty.upstream_port, tmp_path.name, first, other)
    with pytest.raises(LogError, match=rf"{first} is not what was published"):
        erase(log, MATCH, where)
    assert (_copy(faulty, tmp_path) / first).read_bytes() == other and list(log.glob(".*.tmp")) == []


@pytest.mark.parametrize("keep_local", [True, False])
def test_an_object_that_is_not_ours_is_left_alone(faulty: FaultyStore, tmp_path: Path, keep_local: bool) -> None:
    log = tmp_path / "log"
    where = config(faulty, tmp_path, publish_keep_local=keep_local)
    _fill(log, where, replay_window_s=0)
    first, second = listed(_copy(faulty, tmp_path))
    put_object(faulty.upstream_port, tmp_path.name, first, (_copy(faulty, tmp_path) / second).read_bytes() + b"x")
    with pytest.raises(LogError, match=rf"not complete, run it again: .*{first}"):
        erase(log, MATCH, where)


def test_what_changed_meanwhile_is_not_replaced(faulty: FaultyStore, tmp_path: Path) -> None:
    log, where = tmp_path / "log", config(faulty, tmp_path)
    _fill(log, where)
    first = next(listed(log))

    def meddle(method: str, path: str) -> Fault:
        if method == "PUT" and path.endswith(first.rpartition("/")[2]):
            put_object(faulty.upstream_port, tmp_path.name, first, b"other")
        return None

    faulty.fault = meddle
    with pytest.raises(LogError, match="changed while it was being replaced"):
        erase(log, MATCH, where)
    assert (_copy(faulty, tmp_path) / first).read_bytes() == b"other"


def test_a_folder_too_as_a_user_types_it(tmp_path: Path) -> None:
    log, table = tmp_path / "log", tmp_path / "table"
    _fill(log, LogConfig(publish=table.as_uri()))
    words = ["log", "erase", "--log", str(log), "--tag", f"user={SECRET}"]
    elsewhere = run_bon(*words, "--to", (tmp_path / "elsewhere").as_uri())
    assert isinstance(elsewhere.exception, LogError) and "was not published there, but to" in str(elsewhere.exception)
    assert len(holding(log, SECRET)) > 0, "it is refused before anything is erased"
    assert run_bon(*words, "--to", table.as_uri()).exit_code == 0
    _check_table(table)
    assert [path for path in table.rglob("*") if path.stat().st_mode & 0o077 or path.suffix == ".tmp"] == []


def test_a_log_that_was_never_published_is_erased_all_the_same(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path / "log")) as spool:
        spool.append([_secret("s", datetime(2026, 1, 1, tzinfo=UTC))])
    assert erase(tmp_path / "log", MATCH, LogConfig(publish=(tmp_path / "table").as_uri()))["records"] == 1

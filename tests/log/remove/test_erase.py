"""What is erased is in no file any more, what is not is there once, whenever the erasing was interrupted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import apsw
import pyarrow.parquet as pq
import pytest

from bon_server.core.errors import ConfigError, LogError, LogLocked
from bon_server.core.types import Message
from bon_server.log.feedback import Recorded, record_feedback
from bon_server.log.read.feedback import FeedbackReader
from bon_server.log.read.reader import LogReader
from bon_server.log.read.snapshot import make_snapshot, read_snapshot
from bon_server.log.remove.erase import Erased, erase
from bon_server.log.remove.rewrite import Match
from bon_server.log.segments.files import listed
from bon_server.log.spool.database import SPOOL_NAME
from bon_server.log.spool.spool import Spool
from bon_server.log.verify.verify import verify
from tests.command import run_bon
from tests.log.observations import observation
from tests.log.records import record, scored
from tests.log.seal.test_sealing import flip, seal

SECRET = "xyzzy-the-secret"
BY_ID, BY_TAG = Match(request_id=SECRET), Match(tag=("user", SECRET))
DAYS = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2)]


def _secret(number: int) -> Any:
    text = f"{SECRET} said {number}"
    return record(
        SECRET,
        attempt=number,
        created_at=DAYS[number % 2],
        prompt_messages=(Message("user", text * 50),),
        candidates=(scored(0, 1.0, text=text * 200), scored(1, 0.0, text=text)),
        tags={"user": SECRET},
        reward_context={"answer": text},
    )


def _about_secret(number: int, **fields: Any) -> Any:
    return observation(f"{SECRET}-{number}", SECRET, attempt=number, value=f"{SECRET} was wrong", **fields)


def _fill(spool: Spool, start: int) -> None:
    """Ten records of two days and a secret one of each, with feedback on all of them."""
    spool.append([record(f"r{i}", created_at=DAYS[i % 2]) for i in range(start, start + 10)])
    spool.append([_secret(start + 1), _secret(start + 2)])
    for i in range(start, start + 10):
        assert record_feedback(spool, observation(f"f{i}", f"r{i}", created_at=DAYS[0])) is Recorded.NEW
    for number in (start + 1, start + 2):
        assert record_feedback(spool, _about_secret(number, created_at=DAYS[1])) is Recorded.NEW


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Sealed and unsealed records and feedback, a secret in each, and two snapshots, one of them with no secret."""
    folder = tmp_path / "log"
    with closing(Spool.open(folder)) as spool:
        spool.append([record("first", created_at=DAYS[0])])
        seal(spool)
        make_snapshot(folder, "before")
        _fill(spool, 0)
        seal(spool)
        make_snapshot(folder, "with")
        _fill(spool, 10)
    return folder


OTHERS = {"first", *(f"r{i}" for i in range(20))}
OBSERVED = {f"f{i}" for i in range(20)}


def _requests(log: Path) -> list[str]:
    with LogReader(log) as reader:
        return [record.request_id for record in reader.records()]


def _observed(log: Path) -> list[str]:
    with FeedbackReader(log) as reader:
        return [one.feedback_id for one in reader.all()]


def holding(log: Path, text: str) -> list[str]:
    """Files in which a text is found, also when it is compressed."""
    found = []
    for path in sorted(path for path in log.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += repr(pq.read_table(path, partitioning=None).to_pylist()).encode()
        if text.encode() in content:
            found.append(path.relative_to(log).as_posix())
    return found


@pytest.mark.parametrize("match", [BY_ID, BY_TAG], ids=["id", "tag"])
def test_nothing_is_left_in_any_file(log: Path, match: Match) -> None:
    assert len(holding(log, SECRET)) == 4, "the two segments, that of feedback and the spool"
    result = erase(log, match)
    assert (result["records"], result["feedback"], len(result["rewritten"])) == (4, 4, 3)
    assert holding(log, SECRET) == []
    assert set(_requests(log)) == OTHERS and len(_requests(log)) == len(OTHERS)
    assert sorted(_observed(log)) == sorted(OBSERVED)
    report = verify(log)
    assert report["ok"], report["problems"]
    again = erase(log, match)
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


def test_what_sealing_left_in_free_pages_goes_too(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([_secret(1), *(record(f"r{i}") for i in range(50))])
        seal(spool)
    assert SPOOL_NAME in holding(tmp_path, f"{SECRET} said")
    erase(tmp_path, BY_ID)
    assert holding(tmp_path, SECRET) == []


def test_snapshots_that_lost_records_are_stale(log: Path) -> None:
    result = erase(log, BY_ID)
    assert result["stale_snapshots"] == ["with"]
    stale = read_snapshot(log / "snapshots" / "with.json")["stale"]
    assert stale == sorted(file for file in result["rewritten"] if file.startswith("segments/"))
    assert "stale" not in read_snapshot(log / "snapshots" / "before.json")
    notes = [(note["kind"], note["file"]) for note in verify(log)["notes"]]
    assert notes == [("snapshot_stale", "snapshots/with.json")] * 2
    with pytest.raises(LogError, match=r"with\.json is stale"):
        make_snapshot(log, "with")


def test_an_erased_request_may_come_again(log: Path) -> None:
    erase(log, BY_ID)
    with closing(Spool.open(log)) as spool:
        assert spool.find("", SECRET) is None and spool.find("", "r1") is not None
        assert spool.append([_secret(1)])[0] is not None
        assert record_feedback(spool, _about_secret(1)) is Recorded.NEW
        assert record_feedback(spool, observation("f1", "r1")) is Recorded.REPLAYED


def test_a_segment_of_nothing_else(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([_secret(1)])
        seal(spool)
    assert erase(tmp_path, BY_TAG)["records"] == 1
    assert _requests(tmp_path) == [] and verify(tmp_path)["ok"]
    with closing(Spool.open(tmp_path)) as spool:
        assert spool.append([record("later")]) == [2]
        seal(spool)
    assert _requests(tmp_path) == ["later"] and verify(tmp_path)["ok"]


def test_feedback_with_the_tag_goes_without_its_record(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record("r")])
        record_feedback(spool, observation("theirs", tags={"user": SECRET}))
        seal(spool)
        record_feedback(spool, observation("theirs too", tags={"user": SECRET}))
        record_feedback(spool, observation("another's", tags={"user": "x"}))
    assert erase(tmp_path, BY_TAG) | {"rewritten": []} == Erased(
        principals=[""],
        records=0,
        feedback=2,
        scores=0,
        rewritten=[],
        stale_snapshots=[],
        republished=[],
        not_searched=[],
    )
    assert _requests(tmp_path) == ["r"] and _observed(tmp_path) == ["another's"]


def test_segments_of_other_writers_and_copies_without_catalog(log: Path) -> None:
    (file, *_) = listed(log)
    other = log / file.replace("writer=", "writer=other-")
    other.parent.mkdir(parents=True)
    shutil.copy(log / file, other)
    stray = (log / file).with_name("000000000900-000000000999.parquet")
    shutil.copy(list(log.glob("segments/*/*/*.parquet"))[-1], stray)
    erase(log, BY_ID)
    assert holding(log, SECRET) == []


def test_an_interrupted_sealing_does_not_keep_it(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Spool.open(log)) as spool, monkeypatch.context() as patch:
        patch.setattr("bon_server.log.seal.sealing.catalog_entry", _crash)
        with pytest.raises(_Crash):
            seal(spool)
    files = set(listed(log))
    (log / next(iter(files))).with_name(".x.parquet.tmp").write_text(SECRET)
    erase(log, BY_ID)
    assert holding(log, SECRET) == [] and set(_requests(log)) == OTHERS and verify(log)["notes"] != []
    with closing(Spool.open(log)) as spool:
        seal(spool)
    assert sorted(_requests(log)) == sorted(OTHERS) and verify(log)["ok"]


class _Crash(BaseException):
    """The process ends here."""


def _crash(*args: object) -> None:
    raise _Crash


STEPS = [
    "bon_server.log.remove.erase.mark_stale",
    "bon_server.log.remove.erase.catalog.will_be",
    "bon_server.log.remove.erase.catalog.was_replaced",
    "bon_server.log.remove.rewrite._write_without",
    "bon_server.log.remove.rewrite.sync_folder",
    "bon_server.log.remove.erase._Erasure._scrub",
    "bon_server.log.remove.erase._Erasure._forget",
]


def _states(log: Path, patch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder before and after every step of an erasure, as a killed process leaves it."""
    kept: list[Path] = []

    def keep() -> None:
        kept.append(shutil.copytree(log, log.parent / f"state-{len(kept)}"))

    def around(step: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **named: Any) -> Any:
            keep()
            result = step(*args, **named)
            keep()
            return result

        return stepping

    for name in STEPS:
        owner, _, attribute = name.rpartition(".")
        target: Any = resolve_name(owner.replace(".erase._Erasure", ".erase:_Erasure"))
        patch.setattr(target, attribute, around(getattr(target, attribute)))
    erase(log, BY_TAG)
    patch.undo()
    yield from kept


def test_a_crash_at_any_step_is_finished_by_running_it_again(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = list(_states(log, monkeypatch))
    assert len(states) > 20
    for state in states:
        before = _requests(state)
        assert set(before) - {SECRET} == OTHERS, state
        assert len([one for one in before if one != SECRET]) == len(OTHERS), state
        assert before.count(SECRET) <= 4
        assert set(_observed(state)) >= OBSERVED and len(set(_observed(state))) == len(_observed(state))
        assert verify(state)["ok"], (state, verify(state)["problems"])
        erase(state, BY_TAG)
        assert holding(state, SECRET) == [], state
        assert sorted(_requests(state)) == sorted(OTHERS) and sorted(_observed(state)) == sorted(OBSERVED)
        assert read_snapshot(state / "snapshots" / "with.json").get("stale")
        assert verify(state)["ok"], (state, verify(state)["problems"])


def test_a_reader_goes_on(log: Path) -> None:
    with LogReader(log) as reader, FeedbackReader(log) as observed:
        records = reader.records()
        got = [next(records).request_id]
        first = next(iter(observed.all()))
        erase_while_reading(log)
        got += [one.request_id for one in records]
        assert [one for one in got if one != SECRET] == [one for one in _requests(log) if one != SECRET]
        assert first.feedback_id in OBSERVED
        assert {one.feedback_id for one in observed.all()} >= OBSERVED
    with LogReader(log) as reader:
        assert {one.request_id for one in reader.records()} == OTHERS


def erase_while_reading(log: Path) -> None:
    """With a reader open, but in no transaction."""
    assert erase(log, BY_ID)["records"] == 4


def test_a_reader_in_a_transaction_stops_it_until_it_runs_again(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bon_server.log.spool.database._BUSY_TIMEOUT_MS", 10)
    with closing(apsw.Connection(str(log / SPOOL_NAME))) as reading:
        rows = reading.execute("SELECT * FROM records")
        next(rows)
        with pytest.raises(LogError, match="not complete, run it again"):
            erase(log, BY_ID)
        rows.close()
    erase(log, BY_ID)
    assert holding(log, SECRET) == []


def test_it_needs_the_log_to_itself(log: Path) -> None:
    with closing(Spool.open(log)), pytest.raises(LogLocked, match="pid"):
        erase(log, BY_ID)
    erase(log, BY_ID)


def test_a_damaged_segment_stops_it_before_anything_is_changed(log: Path) -> None:
    flip(log / list(listed(log))[-1], "request_id")
    with pytest.raises(LogError, match="damaged"):
        erase(log, BY_ID)
    assert set(_observed(log)) > OBSERVED


@pytest.mark.parametrize("match", [Match(), Match("r", ("a", "b"))])
def test_one_of_the_two(log: Path, match: Match) -> None:
    with pytest.raises(ConfigError, match="either"):
        erase(log, match)


def test_the_command(log: Path) -> None:
    def run(*words: str) -> Any:
        return run_bon("log", "erase", "--log", str(log), *words)

    assert isinstance(run("--tag", "user").exception, ConfigError)
    assert isinstance(run().exception, ConfigError)
    with closing(Spool.open(log)):
        refused = run("--request-id", SECRET)
    assert isinstance(refused.exception, LogLocked) and "pid" in str(refused.exception)
    done = json.loads(run("--tag", f"user={SECRET}", "--json").stdout)
    assert (done["records"], done["feedback"], done["stale_snapshots"]) == (4, 4, ["with"])
    assert SECRET not in run("--request-id", "r1").output
    assert sorted(_requests(log)) == sorted(OTHERS - {"r1"})


def test_ids_of_several_callers_are_not_taken_for_each_other(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record("r", principal="ann"), record("r", principal="bob"), record("s", principal="bob")])
        for principal in ("ann", "bob"):
            record_feedback(spool, observation("f", "r", principal=principal))
        seal(spool)
        spool.append([record("r", principal="ann", attempt=2)])
        record_feedback(spool, observation("g", "r", principal="bob"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    with pytest.raises(ConfigError, match=r"several callers used this request id: 'ann', 'bob'; .* --principal"):
        erase(tmp_path, Match(request_id="r"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before
    result = erase(tmp_path, Match(request_id="r", principal="ann"))
    assert (result["principals"], result["records"], result["feedback"]) == (["ann"], 2, 1)
    with LogReader(tmp_path) as reader, FeedbackReader(tmp_path) as observed:
        assert [(one.principal, one.request_id) for one in reader.records()] == [("bob", "r"), ("bob", "s")]
        assert [(one.principal, one.feedback_id) for one in observed.all()] == [("bob", "f"), ("bob", "g")]
    with closing(Spool.open(tmp_path)) as spool:
        assert spool.find("ann", "r") is None and spool.find("bob", "r") is not None
    assert erase(tmp_path, Match(request_id="r"))["principals"] == ["bob"], "the only one left"
    assert verify(tmp_path)["ok"]


def test_a_tag_of_one_caller_only(tmp_path: Path) -> None:
    tags = {"user": "x"}
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record("a", principal="ann", tags=tags), record("b", principal="bob", tags=tags)])
        seal(spool)
        spool.append([record("c", principal="ann", tags=tags), record("d", principal="bob", tags=tags)])
    assert erase(tmp_path, Match(tag=("user", "x"), principal="ann"))["records"] == 2
    assert _requests(tmp_path) == ["b", "d"]
    assert erase(tmp_path, Match(tag=("user", "x")))["principals"] == ["bob"]


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ('{"a=b": "c"}', ["plain", "brace"]),
        ("a=b=c", ["odd", "brace"]),
        ('{"x=1}', ["odd", "plain"]),
    ],
)
def test_a_tag_with_an_equals_sign_in_its_key(tmp_path: Path, given: str, left: list[str]) -> None:
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record("odd", tags={"a=b": "c"}), record("plain", tags={"a": "b=c"})])
        spool.append([record("brace", tags={'{"x': "1}"})])
    done = run_bon("log", "erase", "--log", tmp_path, "--tag", given, "--json")
    assert json.loads(done.stdout)["records"] == 1
    assert sorted(_requests(tmp_path)) == sorted(left)


def test_the_command_says_whose(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path)) as spool:
        spool.append([record("r", principal="ann"), record("r", principal="bob")])
    words = ["log", "erase", "--log", str(tmp_path), "--request-id", "r", "--json"]
    assert "'ann', 'bob'" in run_bon(*words).stderr
    assert json.loads(run_bon(*words, "--principal", "bob").stdout)["principals"] == ["bob"]

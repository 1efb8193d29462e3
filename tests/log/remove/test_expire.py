"""Retention: the oldest files go with their feedback, unless a snapshot pins them, and nobody misses them."""

from __future__ import annotations

import json
import os
import stat
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bon_server.config.settings import LogConfig
from bon_server.core.errors import ConfigError, LogError
from bon_server.core.types import Kind
from bon_server.log.feedback import record_feedback
from bon_server.log.read import snapshot as snapshots
from bon_server.log.read.feedback import FeedbackReader
from bon_server.log.read.reader import LogReader
from bon_server.log.read.snapshot import make_snapshot
from bon_server.log.remove import expire as module
from bon_server.log.remove.erase import erase
from bon_server.log.remove.expire import Expired, Retention, expire
from bon_server.log.remove.rewrite import Match
from bon_server.log.seal import sealer
from bon_server.log.seal.sealer import Sealer
from bon_server.log.segments.files import listed
from bon_server.log.spool.spool import Spool
from bon_server.log.verify.verify import verify
from bon_server.offline.importing import imported
from bon_server.offline.importing.imported import ImportedLine
from tests.command import run_bon
from tests.log.observations import observation
from tests.log.records import record
from tests.log.seal.test_sealing import seal

NOW = datetime(2026, 1, 10, 12, tzinfo=UTC)
DAYS = [NOW.replace(hour=0) - timedelta(days=age) for age in (9, 8, 2, 0)]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A file for each of four days, and one of feedback on each."""
    folder = tmp_path / "log"
    with closing(Spool.open(folder)) as spool:
        for number, day in enumerate(DAYS):
            spool.append([record(f"r{number}-{i}", created_at=day) for i in range(3)])
            record_feedback(spool, observation(f"f{number}", f"r{number}-0", created_at=day))
            seal(spool)
    return folder


def _expire(log: Path, days: float | None = None, size: int | None = None) -> Expired:
    with closing(Spool.open(log)) as spool:
        return expire(spool, Retention(days, size), NOW)


def _days_left(log: Path) -> list[int]:
    with LogReader(log) as reader:
        days = sorted({int(one.request_id[1]) for one in reader.records()})
    with FeedbackReader(log) as reader_of_feedback:
        assert [int(one.feedback_id[1]) for one in reader_of_feedback.all()] == days
        assert reader_of_feedback.count() == len(days)
    assert verify(log)["ok"], verify(log)["problems"]
    return days


@pytest.mark.parametrize(("days", "left"), [(100.0, [0, 1, 2, 3]), (8.0, [1, 2, 3]), (7.0, [2, 3]), (0.6, [3])])
def test_old_files_go_with_their_feedback(log: Path, days: float, left: list[int]) -> None:
    result = _expire(log, days)
    assert (result.segments, result.records, result.feedback) == (
        2 * (4 - len(left)),
        3 * (4 - len(left)),
        4 - len(left),
    )
    assert _days_left(log) == left
    assert _expire(log, days) == Expired()
    assert len(list((log / "segments").iterdir())) == len(left), "folders that are empty go too"


def test_the_oldest_go_beyond_a_size(log: Path) -> None:
    size = sum((log / file).stat().st_size for folder in ("segments", "feedback") for file in listed(log, folder))
    assert _expire(log, size=size) == Expired()
    assert _expire(log, size=size - 1).bytes > 0
    assert _days_left(log) == [1, 2, 3]
    _expire(log, size=1)
    assert list(listed(log)) == [] and list(listed(log, "feedback")) == [] and verify(log)["ok"]
    with closing(Spool.open(log)) as spool:
        assert spool.append([record("r4-0")]) == [13], "ordinals are not used again"
        record_feedback(spool, observation("f4", "r4-0"))
        seal(spool)
    assert _days_left(log) == [4]


def test_what_a_snapshot_pins_stays(log: Path) -> None:
    with closing(Spool.open(log)) as spool:
        expire(spool, Retention(8.0, None), NOW)
        make_snapshot(log, "kept")
        spool.append([record("r4-0", created_at=DAYS[1])])
        record_feedback(spool, observation("f4", "r4-0", created_at=DAYS[1]))
        seal(spool)
        assert expire(spool, Retention(1.0, 1), NOW).records == 1
    assert _days_left_with_feedback_of_4(log) == [1, 2, 3]
    (log / "snapshots" / "kept.json").write_text("{")
    with pytest.raises(LogError, match=r"kept\.json"):
        _expire(log, 1.0)


def _days_left_with_feedback_of_4(log: Path) -> list[int]:
    """Feedback on what a snapshot does not pin stays while older records are there."""
    with LogReader(log) as reader, FeedbackReader(log) as observed:
        assert sorted(one.feedback_id for one in observed.all()) == ["f1", "f2", "f3", "f4"]
        return sorted({int(one.request_id[1]) for one in reader.records()})


def test_a_snapshot_made_meanwhile_keeps_its_files(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[set[str]] = []
    look = module.pinned

    def looking(directory: Path) -> set[str]:
        looks.append(look(directory))
        return looks[-1] if len(looks) == 1 else {file for file in listed(log) if "date=2026-01-01" in file}

    monkeypatch.setattr("bon_server.log.remove.expire.pinned", looking)
    result = _expire(log, 7.0)
    assert result.records == 3 and len(looks) == 2
    with LogReader(log) as reader:
        assert sorted({int(one.request_id[1]) for one in reader.records()}) == [0, 2, 3]
    assert verify(log)["ok"]


def test_a_snapshot_of_expired_files_is_withdrawn(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = snapshots._write

    def expiring(path: Path, snapshot: Any) -> None:
        original(path, snapshot)
        monkeypatch.setattr("bon_server.log.remove.expire.pinned", lambda directory: set())
        _expire(log, 7.0)

    monkeypatch.setattr(snapshots, "_write", expiring)
    with pytest.raises(LogError, match="expired while"):
        make_snapshot(log, "late")
    assert not (log / "snapshots" / "late.json").exists() and verify(log)["ok"]


def test_a_retry_of_what_expired_samples_again(log: Path) -> None:
    with closing(Spool.open(log)) as spool:
        assert spool.find("", "r0-1") is not None
        expire(spool, Retention(7.0, None), NOW)
        assert spool.find("", "r0-1") is None and spool.find("", "r2-1") is not None
        assert spool.append([record("r0-1")]) == [13]


def test_an_expired_import_is_not_imported_again(tmp_path: Path) -> None:
    line = ImportedLine(b"key", b"digest")
    with closing(Spool.open(tmp_path)) as spool:
        imported.append(spool, [(record("i", kind=Kind.IMPORT, created_at=DAYS[0]), [line])])
        seal(spool)
        assert expire(spool, Retention(1.0, None), NOW).records == 1
        assert imported.known(spool, [line.key]) == {b"key": b"digest"}


class _Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["catalog.expire", "_remove", "sync_folder"])
def test_a_crash_at_any_step_is_harmless(log: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def crash(*args: object) -> None:
        raise _Crash

    with monkeypatch.context() as patch, pytest.raises(_Crash):
        patch.setattr(f"bon_server.log.remove.expire.{step}", crash)
        _expire(log, 7.0)
    assert _days_left(log) in ([0, 1, 2, 3], [2, 3])
    _expire(log, 7.0)
    assert _days_left(log) == [2, 3] and len(list(listed(log))) == len(list(listed(log, "feedback"))) == 2


def test_a_reader_goes_on_without_what_expired(log: Path) -> None:
    with LogReader(log) as reader, FeedbackReader(log) as observed:
        records = reader.records()
        assert next(records).request_id == "r0-0"
        _expire(log, 7.0)
        assert {one.request_id[:2] for one in records} == {"r0", "r2", "r3"}, (
            "the file that was open is read to its end"
        )
        assert [one.feedback_id for one in observed.all()] == ["f2", "f3"]


def test_a_server_applies_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealer, "CHECK_S", 0.01)
    with closing(Spool.open(tmp_path)) as spool:
        spool.append(
            [record("old", created_at=DAYS[0]), record("new", created_at=datetime.now(UTC) + timedelta(days=9))]
        )
        seal(spool)
        with closing(Sealer(spool, LogConfig(retain_days=1.0))):
            until = time.monotonic() + 10
            while len(list(listed(tmp_path))) == 2 and time.monotonic() < until:
                time.sleep(0.01)
    with LogReader(tmp_path) as reader:
        assert [one.request_id for one in reader.records()] == ["new"]


def test_the_command(log: Path) -> None:
    def run(*words: str) -> Any:
        return run_bon("log", "expire", "--log", str(log), *words)

    assert isinstance(run().exception, ConfigError)
    done = json.loads(run("--set", "log.retain_bytes=1", "--json").stdout)
    assert (done["segments"], done["records"], done["feedback"]) == (8, 12, 4)


def test_files_and_folders_are_their_owners_after_everything(log: Path) -> None:
    previous = os.umask(0)
    try:
        with closing(Spool.open(log)) as spool:
            assert expire(spool, Retention(7.0, None), NOW).segments == 4
            make_snapshot(log, "kept")
            spool.append([record("r5-0"), record("r5-1", tags={"a": "b"})])
            record_feedback(spool, observation("f5", "r5-1"))
            seal(spool)
            spool.append([record("r6-0")])
            _check_modes(log)
        erase(log, Match(tag=("a", "b")))
        erase(log, Match(request_id="r2-1"))
        run_bon("log", "import", str(_bad_file(log.parent)), "--log", str(log))
        assert verify(log)["ok"], verify(log)["problems"]
    finally:
        os.umask(previous)
    assert (log / "rejected").is_dir()
    _check_modes(log)


def _bad_file(folder: Path) -> Path:
    file = folder / "bad.jsonl"
    file.write_text('{"prompt": "p", "responses": ["a"], "rewards": [1.0]}\nno json\n')
    return file


def _check_modes(log: Path) -> None:
    for path in (log, *log.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.is_file() else 0o700), path

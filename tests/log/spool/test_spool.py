"""The writer: commits, groups, finds, and comes back."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from bon_server.config.settings import LogConfig
from bon_server.core.errors import (
    InternalError,
    LogError,
    LogLocked,
    RequestIdReused,
    StartupError,
    Unavailable,
)
from bon_server.core.types import Candidate, CandidateStatus, Durability, Outcome
from bon_server.log.read.reader import LogReader
from bon_server.log.spool.database import SPOOL_NAME, check_sqlite
from bon_server.log.spool.spool import Group, Spool
from bon_server.log.spool.writer import Recovery
from tests.log.records import ODD_TEXT, record, scored
from tests.waiting import until

SLOW_GROUPS = LogConfig(durability=Durability.GROUP, linger_ms=50)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """An open spool in `tmp_path / "log"`."""
    with closing(Spool.open(tmp_path / "log")) as spool:
        yield spool


async def test_what_was_committed_is_there_after_a_restart(tmp_path: Path) -> None:
    records = [record(f"r{i}", candidates=(scored(0, i / 7, text=ODD_TEXT + str(i)),)) for i in range(5)]
    with closing(Spool.open(tmp_path / "log")) as spool:
        assert spool.recovery.records == spool.recovery.last_ordinal == 0
        assert [await spool.commit(one) for one in records] == [1, 2, 3, 4, 5]
    with closing(Spool.open(tmp_path / "log")) as spool:
        assert (spool.recovery.records, spool.recovery.last_ordinal) == (5, 5)
        assert spool.recovery.spool_bytes > 0
        assert spool.find("", "r3") == replace(records[3], ordinal=4)
        assert await spool.commit(record("r5")) == 6
    with LogReader(tmp_path / "log") as reader:
        assert list(reader.records())[:5] == [replace(one, ordinal=i + 1) for i, one in enumerate(records)]


def test_a_start_says_what_it_found() -> None:
    assert str(Recovery(0, 0, 0, 0)) == "no records found"
    assert str(Recovery(1_234, 1_300, 0, 1 << 20)) == "1,234 records found"
    assert str(Recovery(7, 7, 20, 1 << 20)) == "7 records found, 20 pages recovered from an unclean end"


async def test_ordinals_are_never_used_again(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path)) as spool:
        assert [await spool.commit(record(name)) for name in "abc"] == [1, 2, 3]
    database = apsw.Connection(str(tmp_path / SPOOL_NAME))
    database.execute("DELETE FROM records")
    database.close()
    with closing(Spool.open(tmp_path)) as spool:
        assert spool.recovery.records == 0 and spool.recovery.last_ordinal == 3
        assert await spool.commit(record("d")) == 4


async def test_find_gives_the_latest_attempt_of_that_caller(spool: Spool) -> None:
    await spool.commit(record("r", principal="ann", attempt=1, outcome=Outcome.FAILED))
    await spool.commit(record("r", principal="ann", attempt=2))
    await spool.commit(record("r", principal="bob", tags={"mine": "yes"}))
    found = spool.find("ann", "r")
    assert found is not None and (found.attempt, found.ordinal) == (2, 2)
    assert spool.find("", "r") is None and spool.find("ann", "other") is None


async def test_an_attempt_is_logged_once(spool: Spool) -> None:
    await spool.commit(record("r"))
    with pytest.raises(RequestIdReused):
        await spool.commit(record("r", rewards=(1.0,)))
    found = spool.find("", "r")
    assert found is not None and found.candidates[0].reward == 0.5


async def test_a_doubled_attempt_does_not_fail_its_neighbours(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path, SLOW_GROUPS)) as spool:
        names = ["a", "b", "a", "c"]
        answers = await asyncio.gather(*(spool.commit(record(name)) for name in names), return_exceptions=True)
    assert [type(answer) for answer in answers] == [int, int, RequestIdReused, int]
    with LogReader(tmp_path) as reader:
        assert [one.request_id for one in reader.records()] == ["a", "b", "c"]


async def test_what_must_not_be_logged_is_an_internal_error(spool: Spool) -> None:
    with pytest.raises(InternalError):
        await spool.commit(record(candidates=(Candidate(0, CandidateStatus.SCORED),)))
    assert await spool.commit(record()) == 1


async def test_a_waiter_that_leaves_does_not_undo_its_commit(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path, SLOW_GROUPS)) as spool:
        leaving = asyncio.create_task(spool.commit(record("leaves")))
        await asyncio.sleep(0)
        leaving.cancel()
        await spool.commit(record("stays"))
        assert leaving.cancelled() and spool.find("", "leaves") is not None


async def test_close_commits_what_is_queued_and_refuses_the_rest(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, SLOW_GROUPS)
    queued = [asyncio.create_task(spool.commit(record(f"r{i}"))) for i in range(50)]
    await asyncio.sleep(0)
    await asyncio.to_thread(spool.close)
    spool.close()
    assert sorted(await asyncio.gather(*queued)) == list(range(1, 51))
    with pytest.raises(Unavailable):
        await spool.commit(record("late"))
    with pytest.raises(Unavailable):
        spool.append([record("late")])
    with pytest.raises(Unavailable):
        spool.find("", "r0")


async def test_another_program_in_the_way_is_waited_for_and_then_worth_a_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bon_server.log.spool.database._BUSY_TIMEOUT_MS", 50)
    with closing(Spool.open(tmp_path)) as spool:
        intruder = apsw.Connection(str(tmp_path / SPOOL_NAME))
        intruder.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="another program"):
            await spool.commit(record())
        intruder.execute("ROLLBACK")
        intruder.close()
        assert await spool.commit(record()) == 1 and spool.failure is None


def test_append_is_idempotent(spool: Spool) -> None:
    assert spool.append([record("a"), record("b")]) == [1, 2]
    ordinals = spool.append([record("b"), record("c"), record("c")])
    assert ordinals[0] is ordinals[2] is None and ordinals[1] is not None and ordinals[1] > 2


def test_only_their_owner_can_read_the_files(tmp_path: Path, spool: Spool) -> None:
    spool.append([record()])
    with LogReader(tmp_path / "log"):
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "log").iterdir()}
    assert set(modes) >= {SPOOL_NAME, f"{SPOOL_NAME}-wal", f"{SPOOL_NAME}-shm", "writer.lock"}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o700


def test_a_second_writer_is_refused(tmp_path: Path, spool: Spool) -> None:
    with pytest.raises(LogLocked, match="pid "):
        Spool.open(tmp_path / "log")
    spool.close()
    Spool.open(tmp_path / "log").close()


@pytest.mark.parametrize("durability", list(Durability))
async def test_every_durability_commits_finds_and_comes_back(tmp_path: Path, durability: Durability) -> None:
    config = LogConfig(durability=durability, linger_ms=1, async_sync_ms=1)
    with closing(Spool.open(tmp_path, config)) as spool:
        assert sorted(await asyncio.gather(*(spool.commit(record(f"r{i}")) for i in range(20)))) == list(range(1, 21))
        assert spool.find("", "r7") is not None
    with closing(Spool.open(tmp_path, config)) as spool:
        assert (spool.recovery.records, spool.recovery.wal_frames) == (20, 0)


async def test_only_durability_group_waits_for_company(tmp_path: Path) -> None:
    async def groups(durability: Durability) -> tuple[int, float]:
        """Sizes of the groups that ten records end up in that come 1 ms after each other."""
        seen: list[Group] = []
        config = LogConfig(durability=durability, linger_ms=300)
        with closing(Spool.open(tmp_path / durability, config, on_group=seen.append)) as spool:
            commits = []
            for i in range(10):
                commits.append(asyncio.create_task(spool.commit(record(f"r{i}"))))
                await asyncio.sleep(0.001)
            await asyncio.gather(*commits)
        assert sum(group.records for group in seen) == 10
        return len(seen), max(seen[0].seconds)

    assert (await groups(Durability.GROUP))[0] == 1
    assert (await groups(Durability.FSYNC))[1] < 0.3


async def test_a_group_has_a_largest_size_and_then_waits_for_nobody(tmp_path: Path) -> None:
    seen: list[Group] = []
    config = LogConfig(durability=Durability.GROUP, linger_ms=1000, group_records=4)
    with closing(Spool.open(tmp_path, config, on_group=seen.append)) as spool:
        await asyncio.wait_for(asyncio.gather(*(spool.commit(record(f"r{i}")) for i in range(8))), 0.9)
    assert [group.records for group in seen] == [4, 4]


async def test_what_waits_is_counted_and_a_long_queue_refuses_new_work(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path, LogConfig(queue_bytes=5_000))) as spool:
        spool.check()
        other = apsw.Connection(str(tmp_path / SPOOL_NAME))
        other.execute("BEGIN IMMEDIATE")
        commits = [asyncio.create_task(spool.commit(record(f"r{i}"))) for i in range(20)]
        await asyncio.sleep(0)
        assert spool.queued_records == 20 and spool.queued_bytes > 5_000
        with pytest.raises(Unavailable, match="behind") as refused:
            spool.check()
        assert refused.value.retry_after_ms > 0
        other.close()
        assert len(await asyncio.gather(*commits)) == 20, "what was done already is committed all the same"
        await until(lambda: spool.queued_records == spool.queued_bytes == 0)
        spool.check()


async def test_checkpoints_go_on_while_records_are_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bon_server.log.spool.writer.CHECKPOINT_PAGES", 20)
    with closing(Spool.open(tmp_path)) as spool:
        for batch in range(20):
            await asyncio.gather(*(spool.commit(record(f"{batch}-{i}", [0.5] * 16)) for i in range(8)))
        await until(lambda: spool.syncs["checkpoint"] > 3)
        assert (tmp_path / f"{SPOOL_NAME}-wal").stat().st_size < 1 << 20, "the write-ahead log starts anew"
    with LogReader(tmp_path) as reader:
        assert len(list(reader.records())) == 160


@pytest.mark.parametrize("version", ["3.7.0", "3.40.1", "3.51.2"])
def test_an_sqlite_that_can_corrupt_the_wal_is_refused(version: str) -> None:
    with pytest.raises(StartupError, match=version):
        check_sqlite(version)


@pytest.mark.parametrize("version", ["3.51.3", "3.54.1", "4.0.0"])
def test_an_sqlite_without_that_bug_is_fine(version: str) -> None:
    check_sqlite(version)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match="file/log"):
        Spool.open(tmp_path / "file" / "log")


def test_foreign_and_newer_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    foreign = tmp_path / SPOOL_NAME
    foreign.write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(LogError, match=SPOOL_NAME):
        Spool.open(tmp_path)
    foreign.unlink()
    database = apsw.Connection(str(foreign))
    database.execute("CREATE TABLE somebody_elses (x)")
    with pytest.raises(LogError, match="another program's database"):
        Spool.open(tmp_path)
    with pytest.raises(LogError, match="another program's database"):
        LogReader(tmp_path)
    database.close()
    foreign.unlink()
    Spool.open(tmp_path).close()
    apsw.Connection(str(foreign)).pragma("user_version", 99)
    with pytest.raises(LogError, match="layout 99"):
        Spool.open(tmp_path)


def test_a_start_that_failed_lets_go_of_the_lock(tmp_path: Path) -> None:
    (tmp_path / SPOOL_NAME).write_bytes(b"x" * 5_000)
    with pytest.raises(LogError):
        Spool.open(tmp_path)
    (tmp_path / SPOOL_NAME).unlink()
    Spool.open(tmp_path).close()

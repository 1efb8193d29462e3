"""No room for the log: refused before anything is sampled, NOT_SERVING, and back by itself when there is room."""

from __future__ import annotations

import asyncio
import resource
import subprocess
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.errors import LogFull
from bon_server.serving.banner import banner
from bon_server.types import Durability, Outcome
from tests.fakes import ScriptedPolicy, says
from tests.serving.conftest import Run
from tests.serving.running import Running
from tests.waiting import SOON_S, until

FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
LONG = "long " * 5_000


@pytest.fixture(autouse=True)
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of once a second."""
    monkeypatch.setattr("bon_server.log.upkeep.LOOK_EVERY_S", 0.02)


async def _until_serving(running: Running, serving: bool = True) -> None:
    async with asyncio.timeout(SOON_S):
        while await running.health() != ("SERVING" if serving else "NOT_SERVING"):  # noqa: ASYNC110 -- another side's
            await asyncio.sleep(0.01)


@contextmanager
def _small_files(limit_bytes: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_failed_commit_closes_the_door_until_the_same_fits(run: Run) -> None:
    running = await run()
    await running.ask(request_id="before")
    with _small_files((running.log / "spool.sqlite-wal").stat().st_size):
        first = await running.refused(request_id="a", n=64, text=LONG)
        assert (first.code, running.server.broken) == (FULL, None)
        assert first.pushback_ms
        await _until_serving(running, False)
        sampled = (await running.metrics())['bon_candidates_total{status="scored"}']
        for _ in range(20):
            assert (await running.refused(request_id="b")).code is FULL
            await asyncio.sleep(0.01)
        assert (await running.ask(request_id="before")).replayed, "a stored answer needs no room"
        metrics = await running.metrics()
        assert (metrics["bon_log_full"], metrics['bon_candidates_total{status="scored"}']) == (1, sampled)
    await _until_serving(running)
    assert not (await running.ask(request_id="a", n=64, text=LONG)).replayed
    assert [(record.request_id, record.attempt, record.outcome) for record in running.records()] == [
        ("before", 1, Outcome.OK),
        ("a", 1, Outcome.OK),
    ]
    assert (await running.metrics())["bon_log_full"] == 0


async def test_below_the_low_water_mark_nothing_is_sampled_but_what_runs_is_logged(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    running = await run(ScriptedPolicy(lambda index: _after(gate)), settings={"log.min_free_bytes": 1 << 20})
    free = [1 << 30]
    statvfs = namedtuple("statvfs", "f_bavail f_frsize")
    monkeypatch.setattr("os.statvfs", lambda folder: statvfs(free[0], 1))
    call = asyncio.create_task(running.ask(request_id="running"))
    await until(lambda: running.server.attempts.running == 1)
    free[0] = (1 << 20) - 1
    await _until_serving(running, False)
    policy: Any = running.server.policy
    before = policy.running
    refused = await asyncio.gather(*(running.refused(request_id=f"r{i}") for i in range(5)))
    assert {one.code for one in refused} == {FULL}
    assert policy.running == before, "refused before anything was sampled"
    gate.set()
    assert (await call).best.text
    free[0] = 1 << 20
    await _until_serving(running)
    await running.ask(request_id="again")
    assert [record.request_id for record in running.records()] == ["running", "again"]


async def _after(gate: asyncio.Event) -> Any:
    await gate.wait()
    return says("text")


async def test_a_server_may_start_on_a_full_disk(run: Run) -> None:
    running = await run(settings={"log.min_free_bytes": 1 << 60})
    assert await running.health() == "NOT_SERVING"
    assert (await running.refused()).code is FULL
    with pytest.raises(LogFull):
        running.server.spool.append([])


async def test_a_writer_that_is_behind_refuses_new_work_with_a_pushback(run: Run) -> None:
    running = await run(settings={"log.queue_bytes": 1_000})
    with running.slow_disk():
        first = asyncio.create_task(running.ask(request_id="first", n=32))
        await until(lambda: running.server.spool.queued_records == 1)
        refused = await asyncio.gather(*(running.refused(request_id=f"late{i}") for i in range(5)))
        assert {one.code for one in refused} == {grpc.StatusCode.UNAVAILABLE} and all(
            one.pushback_ms for one in refused
        )
        metrics = await running.metrics()
        assert metrics["bon_log_queue_records"] == 1 and metrics["bon_log_queue_bytes"] > 1_000
        assert await running.health() == "SERVING", "it passes by itself"
    await first
    await running.ask(request_id="late0")
    metrics = await running.metrics()
    assert metrics["bon_log_queue_records"] == metrics["bon_log_queue_bytes"] == 0
    assert metrics["bon_log_commit_seconds_count"] == metrics["bon_log_group_records_sum"] == 2
    assert metrics['bon_log_syncs_total{cause="commit"}'] == 2


@pytest.mark.parametrize("durability", list(Durability))
async def test_the_durability_is_told_everywhere(run: Run, durability: Durability) -> None:
    running = await run(settings={"log.durability": durability.value})
    expected = pb.Durability.Value(f"DURABILITY_{durability.name}")
    assert (await running.ask()).durability == expected
    assert (await running.stub.Score(pb.ScoreRequest(text="q", completions=["a"]))).durability == expected
    assert (await running.stub.GetServerInfo(pb.GetServerInfoRequest())).durability == expected
    assert f"durability {durability.value}" in banner(running.server)
    assert (await running.metrics())[f'bon_log_info{{durability="{durability.value}"}}'] == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_a_file_system_that_is_really_full(small_disk: Path, run: Run) -> None:
    running = await run(settings={"log.directory": str(small_disk / "log"), "log.min_free_bytes": 0})
    running.log = small_disk / "log"
    others = small_disk / "others"
    others.write_bytes(b"x" * (1 << 20))
    acknowledged, refused = [], 0
    for i in range(120):
        try:
            await running.ask(request_id=f"r{i}", n=32)
            acknowledged.append(f"r{i}")
        except grpc.aio.AioRpcError as error:
            assert error.code() is FULL
            refused += 1
        if refused == 10 and others.exists():
            others.unlink()
            await _until_serving(running)
    assert refused >= 10 and len(acknowledged) > 10
    assert [record.request_id for record in running.records()] == acknowledged

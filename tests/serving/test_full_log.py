"""No room for the log: refused before anything is sampled, NOT_SERVING, and back by itself when there is room."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from bon.v1 import bon_pb2 as pb

from bon_server.core.errors import LogFull
from bon_server.core.types import Durability
from bon_server.serving.lifecycle.signals import banner
from tests.serving.conftest import Run
from tests.serving.running import Running
from tests.waiting import SOON_S, until

FULL = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture(autouse=True)
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of once a second."""
    monkeypatch.setattr("bon_server.log.spool.upkeep.LOOK_EVERY_S", 0.02)


async def _until_serving(running: Running) -> None:
    async with asyncio.timeout(SOON_S):
        while await running.health() != "SERVING":  # noqa: ASYNC110 -- another side's
            await asyncio.sleep(0.01)


async def test_a_server_may_start_on_a_full_disk(run: Run) -> None:
    running = await run(settings={"log.min_free_bytes": 1 << 60})
    assert await running.health() == "NOT_SERVING"
    assert (await running.refused()).code is FULL
    with pytest.raises(LogFull):
        running.server.spool.append([])


async def test_the_metrics_of_a_writer_that_is_behind(run: Run) -> None:
    running = await run()
    with running.slow_disk():
        first = asyncio.create_task(running.ask(request_id="first", n=32))
        await until(lambda: running.server.spool.queued_records == 1)
        metrics = await running.metrics()
        assert metrics["bon_log_queue_records"] == 1 and metrics["bon_log_queue_bytes"] > 1_000
    await first
    await running.ask(request_id="later")
    metrics = await running.metrics()
    assert metrics["bon_log_queue_records"] == metrics["bon_log_queue_bytes"] == 0
    assert metrics["bon_log_commit_seconds_count"] == metrics["bon_log_group_records_sum"] == 2
    assert metrics['bon_log_syncs_total{cause="commit"}'] == 2 + 1, "one more saves the time that the log believes"


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

"""What runs in the background breaks: the server says so, refuses, and ends, instead of going on without it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry, Counter

from bon_server.serving.lifecycle.restarts import Restarts
from bon_server.serving.lifecycle.signals import catch_signals, run_until_signalled
from bon_server.serving.policies import Policies
from tests.fakes import ScriptedPolicy
from tests.serving.conftest import Run
from tests.serving.running import Running
from tests.serving.watching import Watch
from tests.waiting import SOON_S, until

SECRET = "the colour of the sixth elephant"


class Loop(NamedTuple):
    """Something that runs as long as the server does."""

    name: str
    where: str
    """What it calls again and again."""
    key: str = ""
    """A setting that makes it run."""
    value: object = None


LOOPS = [
    Loop("the thread log-sealer", "bon_server.log.seal.sealer.waiting"),
    Loop("the thread log-sealer", "bon_server.log.seal.sealer.expire", "log.retain_days", 1.0),
    Loop("the thread log-upkeep", "bon_server.log.spool.upkeep.DiskRoom.look"),
    Loop(
        "the thread log-publisher",
        "bon_server.log.publish.publishing.Publishing.round",
        "log.publish",
        "file://{}/store",
    ),
    Loop("the thread metrics", "bon_server.serving.telemetry.endpoint._Listener.service_actions"),
    Loop("the task health", "bon_server.serving.lifecycle.health.Health._hindrance"),
]


def _breaking(error: type[BaseException]) -> Callable[..., None]:
    def broken(*args: object, **more: object) -> None:
        raise error(SECRET)

    return broken


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """All loops turn as often as a test needs."""
    for name in (
        "seal.sealer.CHECK_S",
        "seal.sealer.EXPIRE_S",
        "seal.sealer.RETRY_S",
        "publish.publisher.CHECK_S",
        "spool.upkeep.LOOK_EVERY_S",
    ):
        monkeypatch.setattr(f"bon_server.log.{name}", 0.01)


async def _ends(running: Running, serving: asyncio.Task[int], name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert await asyncio.wait_for(serving, SOON_S) == 1
    (line,) = (one for one in caplog.messages if one.startswith("stopping: "))
    assert f"{name} ended by a bug: " in line and "test_dead_threads.py" in line and "broken" in line
    assert SECRET not in caplog.text


@pytest.mark.parametrize("error", [KeyError, SystemExit])
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.where.rpartition(".")[2])
async def test_a_loop_that_breaks_ends_the_server(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    loop: Loop,
    error: type[BaseException],
) -> None:
    if "task" in loop.name and error is SystemExit:
        pytest.skip("leaves the event loop, and the process ends")
    value = loop.value.format(tmp_path) if isinstance(loop.value, str) else loop.value
    running = await run(settings={loop.key: value} if loop.key else {})
    assert (await running.ask(text=SECRET)).n_scored == 4
    serving = asyncio.create_task(run_until_signalled(running.server, catch_signals()))
    monkeypatch.setattr(loop.where, _breaking(error))
    await until(lambda: running.server._health._deaths.why is not None or running.server.spool.failure is not None)
    monkeypatch.undo()
    await _ends(running, serving, loop.name, caplog)


async def test_a_thread_of_the_log_that_breaks_closes_the_log(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    running = await run()
    with monkeypatch.context() as patch:
        patch.setattr("bon_server.log.seal.sealer.waiting", _breaking(KeyError))
        await running.health_becomes("NOT_SERVING")
    assert (await running.refused()).code is grpc.StatusCode.UNAVAILABLE
    assert (await running.metrics())["bon_log_failed"] == 1


async def test_nobody_waits_for_a_writer_that_broke(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running = await run()
    serving = asyncio.create_task(run_until_signalled(running.server, catch_signals()))
    with running.slow_disk():
        first = asyncio.create_task(running.ask(text=SECRET))
        await until(lambda: len(running.server.spool._group) == 1)  # its commit has begun, and ends well
        calls = [asyncio.create_task(running.refused(text=SECRET)) for _ in range(7)]
        await until(lambda: running.server.spool.queued_records == 8)
        monkeypatch.setattr("bon_server.log.spool.spool.Writer.write", _breaking(KeyError))
        later = asyncio.create_task(running.refused(text=SECRET))
        await until(lambda: running.server.spool.queued_records == 9)
    assert {one.code for one in await asyncio.gather(*calls, later)} == {grpc.StatusCode.UNAVAILABLE}
    assert (await first).n_scored == 4
    await _ends(running, serving, "the thread log-writer", caplog)


async def test_want_of_memory_is_tried_again_and_counted(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patch:
        patch.setattr("bon_server.log.seal.sealer.seal_beside_commits", _breaking(pa.ArrowMemoryError))
        running = await run(settings={"log.seal_bytes": 1})
        await running.ask(request_id="a")
        await until(lambda: "sealing failed" in caplog.text)
        assert await running.health() == "SERVING"
    await until(lambda: "sealed 1 records" in caplog.text)
    assert (await running.metrics())["bon_log_seal_failures_total"] >= 1


async def test_a_watcher_of_checkpoints_that_breaks(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watching = await watch(ScriptedPolicy())
    serving = asyncio.create_task(run_until_signalled(watching.running.server, catch_signals()))
    monkeypatch.setattr("bon_server.serving.lifecycle.weights_watcher.checkpoints", _breaking(KeyError))
    await _ends(watching.running, serving, "the task weights", caplog)


async def test_who_restarts_engines_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    counted = Counter("restarts", "Starts.", ["role", "result"], registry=CollectorRegistry())
    policies: Any = Policies(ScriptedPolicy())

    async def start(lost: Any) -> Any:
        raise AssertionError("nothing is to be started")

    restarts = Restarts(1, 1.0, policies, start, counted, told.append)
    monkeypatch.setattr("bon_server.serving.lifecycle.restarts.is_hung", _breaking(KeyError))
    restarts.start()
    await until(lambda: bool(told))
    assert told[0].startswith("the task restarts ended by a bug: KeyError")
    await restarts.close()

"""A log that cannot commit: then there is no answer."""

from __future__ import annotations

import asyncio
from typing import Any

import apsw
import grpc
import pytest

from bon_server.types import Outcome
from tests.serving.conftest import Run
from tests.serving.running import question
from tests.waiting import until


class BrokenDatabase:
    """The writer's connection, on a disk that fails with `error` when it is to be written to."""

    def __init__(self, database: Any, error: Exception) -> None:
        self._database = database
        self._error = error

    def execute(self, statement: str, *values: Any) -> Any:
        """Fails when a transaction is to be committed."""
        if statement == "COMMIT":
            raise self._error
        return self._database.execute(statement, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


async def test_no_answer_before_its_record_is_on_disk(run: Run) -> None:
    running = await run()
    with running.slow_disk():
        call = running.stub.Generate(question(request_id="a"))
        await until(lambda: running.server.attempts.running == 1)
        await asyncio.sleep(0.2)
        assert not call.done()
        assert running.records() == []
    answer = await call
    assert answer.timings.log_ns > 100_000_000
    assert running.record("a").outcome is Outcome.OK


async def test_every_answer_can_be_read_back_at_once(run: Run) -> None:
    running = await run()

    async def ask_and_look(number: int) -> None:
        answer = await running.ask(request_id=f"r{number}")
        record = running.record(f"r{number}")
        assert record.selected_index == answer.best.index
        assert [c.text for c in record.candidates] == [c.text for c in answer.candidates]
        assert [c.reward for c in record.candidates] == [c.reward for c in answer.candidates]

    for batch in range(5):
        await asyncio.gather(*(ask_and_look(8 * batch + i) for i in range(8)))


@pytest.mark.parametrize("error", [apsw.IOError("disk I/O error"), apsw.CorruptError("malformed"), RuntimeError("bug")])
async def test_a_failed_disk_is_unavailable_for_good(run: Run, error: Exception) -> None:
    running = await run()
    await running.ask(request_id="before")
    writer: Any = running.server.spool._writer
    database = writer._database
    writer._database = BrokenDatabase(database, error)
    refused = await asyncio.gather(*(running.refused(request_id=f"r{i}") for i in range(3)))
    assert {one.code for one in refused} == {grpc.StatusCode.UNAVAILABLE}
    assert all(one.pushback_ms for one in refused)
    writer._database = database
    assert (await running.refused(request_id="later")).code is grpc.StatusCode.UNAVAILABLE, "unknown what is on disk"
    assert running.server.broken is not None
    assert [record.request_id for record in running.records()] == ["before"]


async def test_a_failed_disk_stops_the_server(run: Run) -> None:
    from bon_server.serving.signals import catch_signals, run_until_signalled

    running = await run()
    serving = asyncio.create_task(run_until_signalled(running.server, catch_signals()))
    await running.ask()
    writer: Any = running.server.spool._writer
    writer._database = BrokenDatabase(writer._database, apsw.IOError("disk I/O error"))
    await running.refused()
    assert await asyncio.wait_for(serving, 10) == 1


async def test_a_damaged_record_is_not_replayed(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    running = await run()
    await running.ask(request_id="a", text="canary-in-the-log")
    database = apsw.Connection(str(running.log / "spool.sqlite"))
    database.execute("UPDATE records SET record = zeroblob(length(record))")
    database.close()
    refused = await running.refused(request_id="a", text="canary-in-the-log")
    assert refused.code is grpc.StatusCode.INTERNAL
    assert "canary" not in refused.everything_said
    assert "canary" not in caplog.text

"""A log that cannot commit: then there is no answer."""

from __future__ import annotations

import asyncio
from typing import Any

import apsw

from bon_server.core.types import Outcome
from tests.log.broken_database import BrokenDatabase
from tests.serving.conftest import Run
from tests.serving.running import question
from tests.waiting import until


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


async def test_a_failed_disk_stops_the_server(run: Run) -> None:
    from bon_server.serving.lifecycle.signals import catch_signals, run_until_signalled

    running = await run()
    serving = asyncio.create_task(run_until_signalled(running.server, catch_signals()))
    await running.ask()
    writer: Any = running.server.spool._writer
    writer._database = BrokenDatabase(writer._database, apsw.IOError("disk I/O error"))
    await running.refused()
    assert await asyncio.wait_for(serving, 10) == 1

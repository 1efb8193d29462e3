"""A server seals its log while it serves and when it ends; nobody who asks notices."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from bon_server.log.read.stats import log_stats
from bon_server.log.spool.database import SPOOL_NAME
from bon_server.log.verify.verify import verify
from tests.serving.conftest import Run
from tests.serving.running import Running
from tests.waiting import until

SECRET = "the colour of the sixth elephant"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The spool is measured, and a failed sealing tried again, as often as a test needs."""
    monkeypatch.setattr("bon_server.log.seal.sealer.CHECK_S", 0.01)
    monkeypatch.setattr("bon_server.log.seal.sealer.RETRY_S", 0.01)


def _unsealed(running: Running) -> int:
    return log_stats(running.log)["unsealed"]


async def _answers_survive(running: Running, **settings: Any) -> None:
    first = await running.ask(request_id="a")
    await until(lambda: _unsealed(running) == 0)
    again = await running.ask(request_id="a")
    assert again.replayed and again.best == first.best and again.candidates == first.candidates
    assert [record.request_id for record in running.records()] == ["a"]
    assert await running.health() == "SERVING"


async def test_by_size(run: Run) -> None:
    await _answers_survive(await run(settings={"log.seal_bytes": 1}))


async def test_by_age(run: Run) -> None:
    await _answers_survive(await run(settings={"log.seal_age_s": 0.05}))


async def test_not_before_its_time(run: Run) -> None:
    running = await run()
    await running.ask(request_id="a")
    assert _unsealed(running) == 1


@pytest.mark.parametrize("seals", [True, False])
async def test_a_clean_shutdown_seals_unless_told_otherwise(run: Run, seals: bool) -> None:
    running = await run(settings={"log.seal_on_shutdown": seals})
    await running.ask(request_id="a")
    await running.server.drain(1)
    await running.server.stop()
    stats = log_stats(running.log)
    assert (stats["requests"], stats["unsealed"], stats["segments"]) == (1, 0 if seals else 1, 1 if seals else 0)
    assert verify(running.log)["ok"]


async def test_a_sealing_that_fails_is_tried_again_and_told_without_content(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device", str(Path("log") / SPOOL_NAME))

    with monkeypatch.context() as patch:
        patch.setattr("bon_server.log.segments.files._Growing.flush", full)
        running = await run(settings={"log.seal_bytes": 1})
        await running.ask(request_id="a", text=SECRET)
        await until(lambda: "sealing failed" in caplog.text)
        assert _unsealed(running) == 1 and await running.health() == "SERVING"
        await running.ask(request_id="b", text=SECRET)
    await until(lambda: _unsealed(running) == 0)
    assert "No space left" in caplog.text and SECRET not in caplog.text
    assert sorted(record.request_id for record in running.records()) == ["a", "b"]

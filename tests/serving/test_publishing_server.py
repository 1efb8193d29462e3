"""A server publishes what it seals; a store that is away is noticed by the operator and by nobody who asks."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

import pytest

from bon_server.core.errors import ConfigError
from bon_server.log.read.reader import LogReader
from bon_server.log.verify.verify import verify
from tests.serving.conftest import Run
from tests.waiting import until


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is looked at as often as a test needs."""
    for name in (
        "seal.sealer.CHECK_S",
        "publish.publisher.CHECK_S",
        "publish.publishing.FIRST_PAUSE_S",
        "publish.publishing.LONGEST_PAUSE_S",
    ):
        monkeypatch.setattr(f"bon_server.log.{name}", 0.01)


def _ids(folder: Path) -> list[str]:
    with LogReader(folder) as reader:
        return [one.request_id for one in reader.records()]


async def test_what_is_sealed_is_published_also_at_the_end(run: Run, tmp_path: Path) -> None:
    table = tmp_path / "table"
    running = await run(settings={"log.publish": table.as_uri(), "log.seal_bytes": 1})
    await running.ask(request_id="a")
    publisher = running.server.publisher
    assert publisher is not None
    await until(lambda: publisher.publishing.published == 1)
    assert _ids(table) == ["a"]
    metrics = await running.metrics()
    assert metrics["bon_log_published_segments_total"] == 1
    assert metrics["bon_log_publish_waiting_segments"] == metrics["bon_log_publish_oldest_seconds"] == 0
    await running.ask(request_id="b")
    await running.server.drain(1)
    await running.server.stop()
    assert _ids(table) == ["a", "b"] and verify(table)["ok"]


async def test_a_store_that_is_away_stops_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = taken.getsockname()[1]
    options = tmp_path / "store.toml"
    options.write_text(
        f'endpoint = "http://127.0.0.1:{nobody}"\naccess_key_id = "key"\nsecret_access_key = "a-secret"\n'
        "[client_options]\nallow_http = true\n"
    )
    settings = {
        "log.publish": "s3://bucket/table",
        "log.publish_options": str(options),
        "log.seal_bytes": 1,
        "log.publish_close_s": 0.2,
    }
    running = await run(settings=settings)
    await running.ask(request_id="a")
    publisher = running.server.publisher
    assert publisher is not None
    await until(lambda: publisher.publishing.failures["connection"] > 2)
    await running.ask(request_id="b")
    assert await running.health() == "SERVING"
    metrics = await running.metrics()
    assert metrics["bon_log_publish_waiting_segments"] >= 1 and metrics["bon_log_publish_waiting_bytes"] > 1_000
    assert metrics['bon_log_publish_failures_total{kind="connection"}'] > 2
    assert metrics["bon_log_publish_oldest_seconds"] > 0
    began_s = time.monotonic()
    await running.server.drain(1)
    await running.server.stop()
    assert time.monotonic() - began_s < 5
    assert _ids(running.log) == ["a", "b"]
    assert "publishing failed (connection)" in caplog.text and "a-secret" not in caplog.text
    assert "not published yet" in caplog.text


async def test_a_place_that_cannot_be_is_refused_at_the_start(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"log\.publish = 'ftp://x/y'"):
        await run(settings={"log.publish": "ftp://x/y"})
    with pytest.raises(ConfigError, match=r"publish_keep_local"):
        await run(settings={"log.publish_keep_local": False})

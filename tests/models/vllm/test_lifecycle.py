"""Starting an engine's process, and giving that up."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from bon_server.models.vllm.engine import start_process
from tests.models.vllm.started import start
from tests.system.test_child_process import is_gone
from tests.waiting import until


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_a_start_that_is_given_up_leaves_no_process_and_no_worker(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    starting = asyncio.create_task(start_process(start, pids))
    await until(pids.exists)
    engine, worker = map(int, pids.read_text().split())
    assert not (is_gone(engine) or is_gone(worker))
    starting.cancel()
    with suppress(asyncio.CancelledError):
        await starting
    await until(lambda: is_gone(engine) and is_gone(worker))

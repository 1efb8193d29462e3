"""A checkpoint that does not fit: nothing is lost, and nothing is closed for good."""

from __future__ import annotations

import resource
from pathlib import Path

from bon_server.log.spool.database import SPOOL_NAME
from bon_server.log.spool.spool import Spool
from tests.log.records import record


def test_a_checkpoint_without_room_is_tried_again(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path)
    spool.append([record(f"r{index}") for index in range(200)])
    writer = spool._writer
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / SPOOL_NAME).stat().st_size, before[1]))
    try:
        writer.checkpoint(at_least_pages=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert writer.syncs["checkpoint"] == 0, "it did not fit"
    assert spool.failure is None
    writer.checkpoint(at_least_pages=1)
    assert writer.syncs["checkpoint"] == 1
    assert spool.append([record("later")]) == [201]
    spool.close()

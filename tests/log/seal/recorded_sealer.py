"""Commits, seals and publishes with `recorder.c` preloaded, and notes what is acknowledged.

Run as `-m tests.log.seal.recorded_sealer FOLDER KIND [unsynced]`. The log is `FOLDER/log`, the store `FOLDER/table`. It
ends without closing. KIND: `records` or `feedback`. unsynced: files and folders that Python syncs are not synced.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bon_server.config.settings import LogConfig
from bon_server.log.feedback import Recorded, record_feedback
from bon_server.log.publish.publisher import publish_all
from bon_server.log.seal.sealing import seal
from bon_server.log.spool import writer
from bon_server.log.spool.spool import Spool
from tests.log.observations import observation
from tests.log.recorded_writer import note
from tests.log.records import record


def main(folder: Path, kind: str) -> None:
    """The sealing is of two dates."""
    spool = Spool.open(folder / "log")
    where = LogConfig(publish=(folder / "table").as_uri())
    for day in range(2):
        name = f"{kind}-{day}"
        note(f"submitted {name}")
        created = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)
        if kind == "records":
            spool.append([record(name, rewards=[0.5], created_at=created)])
        else:
            assert record_feedback(spool, observation(name, created_at=created)) is Recorded.NEW
        note(f"acknowledged {name}")
    sealed = seal(spool, 1 << 30, 3_600.0)
    result = publish_all(spool, where, patience_s=0)
    assert result.waiting == 0, result
    for file in sealed.files:
        note(f"published {file}")


if __name__ == "__main__":
    writer.CHECKPOINT_PAGES = 1 << 30
    if sys.argv[3:] == ["unsynced"]:
        os.fsync = lambda fd: None
    main(Path(sys.argv[1]), sys.argv[2])
    os._exit(0)

"""Erases or expires with `recorder.c` preloaded, and notes when it begins and when it is done.

Run as `-m tests.log.remove.recorded_remover FOLDER erase|expire [unsynced]`. It fills `FOLDER/log` with records and
observations of two dates, sealed, and more in the spool. When it is to erase, some are secret, and a snapshot pins the
sealed ones. It ends without closing. unsynced: files and folders that Python syncs are not synced.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bon_server.core.types import Message
from bon_server.log.feedback import record_feedback
from bon_server.log.read.snapshot import make_snapshot
from bon_server.log.remove.erase import erase
from bon_server.log.remove.expire import Retention, expire
from bon_server.log.remove.rewrite import Match
from bon_server.log.seal.sealing import seal
from bon_server.log.spool import writer
from bon_server.log.spool.spool import Spool
from tests.log.observations import observation
from tests.log.recorded_writer import note
from tests.log.records import record

SECRET = "xyzzy-the-secret"
MATCH = Match(tag=("user", SECRET))
DAYS = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2)]
RETENTION = Retention(days=1, bytes=None)
NOW = DAYS[1] + timedelta(days=1)
"""Then only the first day is too old."""
KEPT = {"old", "new", "unsealed"}
"""Request ids that are not secret, each with an observation of the same name."""


def fill(folder: Path, with_secrets: bool) -> None:
    """A log, closed."""
    with closing(Spool.open(folder)) as spool:
        _add(spool, "old", DAYS[0], with_secrets)
        _add(spool, "new", DAYS[1], with_secrets=False)
        seal(spool, 1 << 30, 3_600.0)
        if with_secrets:
            make_snapshot(folder, "pins")
        _add(spool, "unsealed", DAYS[1], with_secrets)


def _add(spool: Spool, name: str, when: datetime, with_secrets: bool) -> None:
    spool.append([record(name, created_at=when)])
    record_feedback(spool, observation(name, name, created_at=when))
    if with_secrets:
        prompt, tags = (Message("user", f"{SECRET} asks"),), {"user": SECRET}
        spool.append([record(f"{SECRET}-{name}", created_at=when, prompt_messages=prompt, tags=tags)])
        record_feedback(spool, observation(f"{SECRET}-{name}", f"{SECRET}-{name}", created_at=when, value=SECRET))


def main(folder: Path, what: str) -> None:
    """Notes `begin` and `done`."""
    fill(folder, with_secrets=what == "erase")
    note("begin")
    if what == "erase":
        erase(folder, MATCH)
    else:
        expire(Spool.open(folder), RETENTION, NOW)
    note("done")


if __name__ == "__main__":
    writer.CHECKPOINT_PAGES = 1 << 30
    if sys.argv[3:] == ["unsynced"]:
        os.fsync = lambda fd: None
    main(Path(sys.argv[1]) / "log", sys.argv[2])
    os._exit(0)

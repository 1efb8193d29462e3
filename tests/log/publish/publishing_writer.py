"""A server's log without its server: commits, seals and publishes all the while.

Run as `-m tests.log.publish.publishing_writer FOLDER URI OPTIONS GROUPS`. Prints each request id once it is
acknowledged, and `published` when all of it is.
"""

from __future__ import annotations

import os
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bon_server.config.settings import LogConfig
from bon_server.log.publish import publisher, publishing
from bon_server.log.publish.publisher import Publisher, publish_all
from bon_server.log.record import Record
from bon_server.log.seal.sealing import seal
from bon_server.log.spool.spool import Spool
from tests.log.records import record

GROUP = 5


def main(folder: Path, config: LogConfig, groups: int) -> None:
    """Request ids are `FOLDER-ORDINAL`; each group is a sealing of two dates."""
    publisher.CHECK_S = publishing.FIRST_PAUSE_S = 0.01
    publishing.LONGEST_PAUSE_S = 0.1
    with closing(Spool.open(folder)) as spool:
        with closing(Publisher(spool, config)):
            first = spool.recovery.last_ordinal + 1
            for group in range(groups):
                numbers = range(first + group * GROUP, first + (group + 1) * GROUP)
                spool.append([_record(folder.name, number) for number in numbers])
                os.write(1, "".join(f"{folder.name}-{number}\n" for number in numbers).encode())
                seal(spool, 1 << 30, 3_600.0)
        seal(spool, 1 << 30, 3_600.0)
        result = publish_all(spool, config, patience_s=20)
    assert result.waiting == 0, result
    os.write(1, b"published\n")


def _record(name: str, number: int) -> Record:
    day = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number % 2)
    return record(f"{name}-{number}", created_at=day)


if __name__ == "__main__":
    where = LogConfig(publish=sys.argv[2], publish_options=sys.argv[3], publish_timeout_s=2, publish_close_s=0.5)
    main(Path(sys.argv[1]), where, int(sys.argv[4]))

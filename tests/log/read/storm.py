"""A process that commits and seals until it is killed. Run as `-m tests.log.read.storm FOLDER PAUSE_S`."""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from bon_server.log.seal.sealing import seal
from bon_server.log.spool.spool import Spool
from tests.log.records import record

GROUP = 20


def write_and_seal(folder: Path, pause_s: float) -> None:
    """Request ids are `s-0`, `s-1`, … in commit order, spread over two dates; prints a dot for each sealed file.

    pause_s: after each group, or there is soon more than a short test has time to check.
    """
    spool = Spool.open(folder)
    threading.Thread(target=_seal_for_ever, args=(spool,), daemon=True).start()
    for group in count():
        numbers = range(group * GROUP, (group + 1) * GROUP)
        days = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number % 2) for number in numbers]
        spool.append(
            [
                record(f"s-{number}", [0.5] * 4, created_at=day, prompt_hash=str(number % 7))
                for number, day in zip(numbers, days, strict=True)
            ]
        )
        time.sleep(pause_s)


def _seal_for_ever(spool: Spool) -> None:
    while True:
        result = seal(spool, 200_000, 3_600.0)
        os.write(1, b"." * len(result.files))


if __name__ == "__main__":
    write_and_seal(Path(sys.argv[1]), float(sys.argv[2]))

"""What time it is, for what cannot be undone: removing records by age, and forgetting the ids of answered requests.

The wall clock may be wrong: a machine without a battery, a mistyped date, a time server that steps. If it is days
ahead, records seconds old look as if they had outlived `log.retain_days`. So age needs a witness beside the wall clock:

    proven time     a time that was believed before (kept in the spool, table `clock`), plus the time that has passed
                    since this process opened the log, by a clock that nobody can set (CLOCK_BOOTTIME: it counts while
                    the machine sleeps, too)
    in doubt        the wall clock is more than `SLACK_S` ahead of that
    believed        the wall clock; in doubt, the proven time, so that nothing goes before it is old without doubt

`SLACK_S` is for restarts: what was off for less is believed. Longer, and nobody can tell a machine that was off for
forty days from a clock that is forty days ahead: both find a log whose newest trace of time is forty days back. Keeping
records too long can be mended, removing them cannot, so the log keeps them and says so (a line of the server,
`bon_log_clock_doubt_seconds`) until somebody confirms the clock: once, with `log.clock_is_right`, or by
`bon log expire --clock-is-right`. Without that, records still go when they are old by proven time.

A clock behind is no danger for what exists: everything looks younger. But what is written meanwhile carries stamps that
are too old, so times until which something is kept count from the later of the two (`latest_us`), and `expire` takes
no file for older than one that was sealed before it.

A new log begins with the wall clock. One of an earlier version, which has no table `clock`, begins with the newest
trace of time that it holds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import apsw

from bon_server.log.catalog import segments

logger = logging.getLogger(__name__)

SLACK_S = 3600.0
"""How far the wall clock may be ahead of the proven time and is believed: what a restart may take."""
SAVE_EVERY_S = 600.0
"""How often a log that is open keeps its proven time."""
_TABLE = "CREATE TABLE IF NOT EXISTS clock (proven_us INTEGER NOT NULL) STRICT"


@dataclass(frozen=True, slots=True)
class Times:
    """Where time comes from; another one in tests."""

    wall_us: Callable[[], int] = lambda: time.time_ns() // 1_000
    """Microseconds since 1970. Anybody may set it."""
    elapsed_us: Callable[[], int] = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000
    """Since whenever; only differences count. Nobody can set it."""


SYSTEM = Times()


class Clock:
    """The time of one log that is open for writing. May be used from any thread."""

    def __init__(self, proven_us: int | None, is_right: bool, times: Times) -> None:
        """proven_us: believed before; None: the log is new. is_right: somebody vouches for the wall clock, now."""
        wall_us = times.wall_us()
        if proven_us is None or is_right or 0 <= wall_us - proven_us <= SLACK_S * 1e6:
            proven_us = wall_us
        self._times = times
        self._vouched = is_right
        self._start_us = proven_us
        self._opened_us = times.elapsed_us()
        self._saved_us = self._opened_us
        self._told = False
        self._mutex = threading.Lock()

    @property
    def proven_us(self) -> int:
        """The time that it is at least, in microseconds since 1970."""
        return self._start_us + self._times.elapsed_us() - self._opened_us

    @property
    def doubt_s(self) -> float:
        """How far the wall clock is ahead of the proven time; 0: it is believed."""
        ahead_s = (self._times.wall_us() - self.proven_us) / 1e6
        return ahead_s if ahead_s > SLACK_S else 0.0

    def believed_us(self) -> int:
        """What may go, or be forgotten, is old at this time."""
        wall_us, proven_us = self._times.wall_us(), self.proven_us
        return wall_us if wall_us - proven_us <= SLACK_S * 1e6 else proven_us

    def latest_us(self) -> int:
        """What is kept for a while from now is kept from this time on."""
        return max(self._times.wall_us(), self.proven_us)

    def doubts(self) -> str | None:
        """A sentence that names both times; None: the wall clock is believed."""
        if not self.doubt_s:
            return None
        wall, proven = (_readable(one) for one in (self._times.wall_us(), self.proven_us))
        return (
            f"the clock says {wall}, but by what the log saw before, and the time since, it is {proven}: nothing is "
            "removed or forgotten by the first; if that is right, say so once with log.clock_is_right = true or "
            "bon log expire --clock-is-right"
        )

    def tell(self, level: int = logging.ERROR) -> None:
        """Logs it when the doubt begins, and when it ends."""
        with self._mutex:
            doubts, told = self.doubts(), self._told
            self._told = doubts is not None
        if doubts is not None and not told:
            logger.log(level, "%s", doubts)
        elif told and doubts is None:
            logger.warning("the clock agrees with the log again")

    def save(self, database: apsw.Connection) -> None:
        """Keeps the proven time, or the wall clock where it is believed and later. In a transaction.

        An earlier time than is kept already changes nothing, unless somebody vouched for the clock.
        """
        self._saved_us = self._times.elapsed_us()
        proven_us = max(self.proven_us, self.believed_us())
        database.execute(_TABLE)
        database.execute("DELETE FROM clock WHERE proven_us < ? OR ?", (proven_us, self._vouched))
        database.execute("INSERT INTO clock SELECT ? WHERE NOT EXISTS (SELECT 1 FROM clock)", (proven_us,))

    def save_is_due(self) -> bool:
        """Whether the last time was `SAVE_EVERY_S` ago."""
        return self._times.elapsed_us() - self._saved_us >= SAVE_EVERY_S * 1e6


def proven(database: apsw.Connection, directory: Path) -> int | None:
    """The time that a log proves, in microseconds since 1970; None: it holds nothing yet."""
    if database.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'clock'").get:
        kept: int | None = database.execute("SELECT proven_us FROM clock").get
        return kept
    traces = [database.execute("SELECT max(created_at_us) FROM records").get]
    for one in segments(database)[-1:]:
        path = directory / one.file
        traces.append(path.stat().st_mtime_ns // 1_000 if path.exists() else None)
    return max((trace for trace in traces if trace is not None), default=None)


def _readable(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="seconds")

"""A wall clock that is wrong: nothing is removed or forgotten that is not old without doubt."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bon_server.config.settings import LogConfig
from bon_server.log.catalog import said_under
from bon_server.log.feedback import record_feedback
from bon_server.log.publish.publisher import publish_all
from bon_server.log.read.reader import LogReader
from bon_server.log.remove.expire import Retention, expire
from bon_server.log.seal import sealer
from bon_server.log.seal.sealer import Sealer
from bon_server.log.segments.files import listed
from bon_server.log.spool.clock import SLACK_S, Times
from bon_server.log.spool.database import SPOOL_NAME, open_for_reading
from bon_server.log.spool.spool import Spool
from tests.command import Ended, run_bon
from tests.log.observations import observation
from tests.log.records import record
from tests.log.seal.test_sealing import seal

DAY_S = 86_400.0
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
TRUSTING = LogConfig(clock_is_right=True)


@dataclass
class Hands:
    """Clocks that a test turns."""

    wall_s: float = NOON
    elapsed_s: float = 1000.0

    @property
    def times(self) -> Times:
        """For `Spool.open`."""
        return Times(lambda: round(self.wall_s * 1e6), lambda: round(self.elapsed_s * 1e6))

    def passes(self, seconds: float) -> None:
        """Time passes, as every clock says."""
        self.wall_s += seconds
        self.elapsed_s += seconds

    def now(self) -> datetime:
        """By the wall clock."""
        return datetime.fromtimestamp(self.wall_s, UTC)


def _open(folder: Path, hands: Hands, config: LogConfig = LogConfig()) -> Spool:  # noqa: B008 -- frozen
    return Spool.open(folder, config, times=hands.times)


def _write(spool: Spool, hands: Hands, *ids: str) -> None:
    spool.append([record(one, created_at=hands.now()) for one in ids])
    record_feedback(spool, observation(f"f-{ids[0]}", ids[0], created_at=hands.now()))
    seal(spool)


def _expire(spool: Spool, days: float = 30.0) -> int:
    return expire(spool, Retention(days, None)).records


def _left(folder: Path) -> list[str]:
    with LogReader(folder) as reader:
        return [one.request_id for one in reader.records()]


def _restarted(hands: Hands) -> Hands:
    """A new process, perhaps after a new start of the machine: the clock that nobody can set begins anew."""
    return Hands(hands.wall_s, 1.0)


@pytest.mark.parametrize("ahead_days", [1, 40])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_clock_that_is_ahead_removes_nothing(tmp_path: Path, ahead_days: int, restarts: bool) -> None:
    hands = Hands()
    with closing(_open(tmp_path, hands)) as spool:
        _write(spool, hands, "r")
        hands.wall_s += ahead_days * DAY_S
        if not restarts:
            _nothing_goes(spool, hands, ahead_days)
    if restarts:
        for _ in range(2):  # not the second time either: what the first start writes has a wrong date
            hands = _restarted(hands)
            with closing(_open(tmp_path, hands)) as spool:
                _nothing_goes(spool, hands, ahead_days)
    assert "r" in _left(tmp_path)


def _nothing_goes(spool: Spool, hands: Hands, ahead_days: int) -> None:
    assert spool.clock.doubt_s == pytest.approx(ahead_days * DAY_S, abs=SLACK_S)
    assert _expire(spool, ahead_days / 2) == 0
    spool.append([record(created_at=hands.now())])
    seal(spool)
    assert spool.latest("", "r") is not None, "a retry still finds its answer"
    with closing(open_for_reading(spool.directory / SPOOL_NAME)) as reading:
        assert said_under(reading, "", "f-r") is not None


def test_what_is_old_without_doubt_goes(tmp_path: Path) -> None:
    hands = Hands()
    with closing(_open(tmp_path, hands)) as spool:
        _write(spool, hands, "old")
        hands.passes(20 * DAY_S)
        _write(spool, hands, "new")
        hands.wall_s += 40 * DAY_S
        hands.passes(11 * DAY_S)
        assert spool.clock.doubt_s and _expire(spool) == 1
        assert _left(tmp_path) == ["new"]
        hands.passes(20 * DAY_S)
        assert _expire(spool) == 1, "what was written before is old by the time that has passed"


def test_a_server_that_was_off_is_believed_when_somebody_says_so(tmp_path: Path) -> None:
    hands = Hands()
    with closing(_open(tmp_path, hands)) as spool:
        _write(spool, hands, "r")
    hands = _restarted(hands)
    hands.wall_s += 40 * DAY_S
    with closing(_open(tmp_path, hands)) as spool:
        assert _expire(spool) == 0
    with closing(_open(tmp_path, hands, TRUSTING)) as spool:
        spool.transaction(spool.clock.save)
    with closing(_open(tmp_path, _restarted(hands))) as spool:  # once is enough
        assert spool.clock.doubt_s == 0.0 and _expire(spool) == 1


def test_a_short_time_off_is_believed(tmp_path: Path) -> None:
    hands = Hands()
    with closing(_open(tmp_path, hands)) as spool:
        _write(spool, hands, "r")
    for _ in range(50):
        hands = _restarted(hands)
        hands.wall_s += SLACK_S - 1
        with closing(_open(tmp_path, hands)) as spool:
            spool.transaction(spool.clock.save)
    with closing(_open(tmp_path, hands)) as spool:
        assert spool.clock.doubt_s == 0.0 and _expire(spool, 1.0) == 1


def test_a_clock_that_was_behind_makes_nothing_old(tmp_path: Path) -> None:
    """What was written meanwhile has dates of forty days ago, and is not removed when the clock is right again."""
    hands = Hands()
    with closing(_open(tmp_path, hands)) as spool:
        _write(spool, hands, "before")
        hands.wall_s -= 40 * DAY_S
        hands.passes(60)
        _write(spool, hands, "meanwhile")
        hands.wall_s += 40 * DAY_S
        hands.passes(60)
        assert spool.clock.doubt_s == 0.0 and _expire(spool) == 0
        seal(spool)
        assert spool.latest("", "meanwhile") is not None, "its window counts from the later time"
        assert spool.append([record("after")]) == [3]
        assert len(list(listed(tmp_path, "feedback"))) == 2
        hands.passes(32 * DAY_S)
        assert _expire(spool) == 2


def test_a_new_log_with_a_wrong_clock_recovers(tmp_path: Path) -> None:
    """Its machine began in 1970, and was told the time a minute later: in doubt until somebody says so."""
    hands = Hands(wall_s=0.0)
    with closing(_open(tmp_path, hands)) as spool:
        _write(spool, hands, "r")
        hands.passes(60)
        hands.wall_s = NOON
        assert spool.clock.doubt_s > 0 and _expire(spool) == 0
    with closing(_open(tmp_path, hands, TRUSTING)) as spool:
        assert spool.clock.doubt_s == 0


def test_a_log_of_an_earlier_version_begins_with_what_it_holds(tmp_path: Path) -> None:
    hands = Hands()
    with closing(_open(tmp_path, hands)) as spool:
        _write(spool, hands, "r")
        spool.transaction(lambda database: database.execute("DROP TABLE clock"))
    for file in listed(tmp_path):
        os.utime(tmp_path / file, (hands.wall_s, hands.wall_s))
    hands = _restarted(hands)
    hands.wall_s += 40 * DAY_S
    with closing(_open(tmp_path, hands)) as spool:
        assert spool.clock.doubt_s == pytest.approx(40 * DAY_S) and _expire(spool) == 0


def test_removal_by_size_asks_no_clock(tmp_path: Path) -> None:
    hands = Hands()
    with closing(_open(tmp_path, hands)) as spool:
        _write(spool, hands, "r")
        hands.wall_s += 40 * DAY_S
        assert expire(spool, Retention(None, 1)).records == 1


def test_local_copies_of_published_segments_stay_while_in_doubt(tmp_path: Path) -> None:
    config = LogConfig(publish=f"file://{tmp_path}/store", publish_keep_local=False)
    hands = Hands()
    with closing(_open(tmp_path / "log", hands)) as spool:
        _write(spool, hands, "r")
        _write(spool, hands, "newest")
        hands.wall_s += 2 * DAY_S
        assert publish_all(spool, config, 0.0).removed == 0
        hands.elapsed_s += 2 * DAY_S
        assert publish_all(spool, config, 0.0).removed > 0


def _wait(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.005)


def test_a_server_says_so_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("CHECK_S", "EXPIRE_S"):
        monkeypatch.setattr(sealer, name, 0.005)
    looks: list[object] = []

    def looking(*args: Any) -> Any:
        looks.append(args)
        return expire(*args)

    monkeypatch.setattr("bon_server.log.seal.sealer.expire", looking)
    hands = Hands()
    config = LogConfig(retain_days=30.0, seal_bytes=1)
    with closing(_open(tmp_path, hands)) as spool, closing(Sealer(spool, config)) as sealing:
        spool.append([record("r", created_at=hands.now())])
        _wait(lambda: sealing.sealed_records == 1)
        hands.wall_s += 40 * DAY_S
        seen = len(looks)
        _wait(lambda: len(looks) >= seen + 3)
        (line,) = (one for one in caplog.records if one.levelno == logging.ERROR)
        said = line.getMessage()
        assert "2026-04-10T12:00:00+00:00" in said and "2026-03-01T12:00:00+00:00" in said and "clock_is_right" in said
        assert sealing.doubt_s == pytest.approx(40 * DAY_S) and sealing.failures == sealing.expire_failures == 0
        hands.wall_s -= 40 * DAY_S
        _wait(lambda: "agrees" in caplog.text)
        assert sealing.doubt_s == 0.0
    assert _left(tmp_path) == ["r"]


def test_the_command_refuses_until_the_clock_is_confirmed(tmp_path: Path) -> None:
    def run(*words: str) -> Ended:
        return run_bon("log", "expire", "--log", tmp_path, "--set", "log.retain_days=30", "--json", *words)

    hands = Hands(wall_s=time.time() - 40 * DAY_S)
    with closing(_open(tmp_path, hands)) as spool:
        _write(spool, hands, "r")
    refused = run()
    assert refused.exit_code == 1 and "--clock-is-right" in refused.stderr and refused.stdout == ""
    assert _left(tmp_path) == ["r"]
    assert json.loads(run("--clock-is-right").stdout)["records"] == 1
    assert run().exit_code == 0, "it was confirmed"

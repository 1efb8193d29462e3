"""Every state that a power cut may leave of an erasure and of the retention.

In each of them what was to stay is there, once; what was done stays done; and the same command finishes the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bon_server.log.read.feedback import FeedbackReader
from bon_server.log.read.reader import LogReader
from bon_server.log.read.snapshot import read_snapshot
from bon_server.log.remove.erase import erase
from bon_server.log.remove.expire import expire
from bon_server.log.segments.files import listed
from bon_server.log.spool.spool import Spool
from bon_server.log.verify.verify import verify
from tests.log.crash_states import CrashState, in_each_state, recorded
from tests.log.remove.recorded_remover import KEPT, MATCH, NOW, RETENTION, SECRET
from tests.log.remove.test_erase import holding
from tests.log.spool.test_crash_states import fast_folder as fast_folder
from tests.log.spool.test_crash_states import recorder as recorder

LONG = [pytest.mark.slow, pytest.mark.long]


def _read(log: Path) -> tuple[list[str], list[str]]:
    """Ids of records and of observations, sorted."""
    with LogReader(log) as reader, FeedbackReader(log) as observed:
        return sorted(one.request_id for one in reader.records()), sorted(one.feedback_id for one in observed.all())


def _check_readable(log: Path) -> tuple[tuple[list[str], list[str]], set[str]]:
    """What is there, which is all right, and kinds of notes about it."""
    found = _read(log)
    assert all(len(set(ids)) == len(ids) for ids in found), "something is there twice"
    report = verify(log)
    assert report["ok"], report["problems"]
    return found, {note["kind"] for note in report["notes"]}


def _check_erased(state: CrashState, disk: Path) -> None:
    """After a power cut, and after the same erasure again."""
    log, kept = disk / "log", sorted(KEPT)
    for ids in _check_readable(log)[0]:
        assert set(kept) <= set(ids) <= {*kept, *(f"{SECRET}-{name}" for name in kept)}
    if "done" in state.notes:
        assert holding(log, SECRET) == []
    erase(log, MATCH)
    assert holding(log, SECRET) == []
    assert _check_readable(log) == ((kept, kept), {"snapshot_stale"})
    stale = read_snapshot(log / "snapshots" / "pins.json").get("stale", [])
    assert [file.split("/")[1] for file in stale] == ["date=2026-01-01"]


def _check_expired(state: CrashState, disk: Path) -> None:
    """After a power cut, and after applying the same retention again."""
    log, kept = disk / "log", sorted(KEPT - {"old"})
    for ids in _check_readable(log)[0]:
        assert ids == kept or (ids == sorted(KEPT) and "done" not in state.notes)
    with closing(Spool.open(log)) as spool:
        expire(spool, RETENTION, NOW)
        assert spool.find("", "new") is not None and spool.find("", "old") is None
    assert _check_readable(log) == ((kept, kept), set())
    assert [file for kind in ("segments", "feedback") for file in listed(log, kind) if "date=2026-01-01" in file] == []


CHECKS = {"erase": _check_erased, "expire": _check_expired}


@pytest.mark.parametrize(
    ("what", "torn"),
    [
        ("expire", False),
        pytest.param("expire", True, marks=LONG),
        pytest.param("erase", False, marks=LONG),
    ],
)
def test_it_is_finished_after_every_power_cut(
    recorder: Path, tmp_path: Path, fast_folder: Path, what: str, torn: bool
) -> None:
    operations = recorded(recorder, "tests.log.remove.recorded_remover", tmp_path / "disk", what)
    check: Callable[[CrashState, Path], None] = CHECKS[what]
    states = in_each_state(operations, tmp_path / "disk", fast_folder / "disk", check, torn, since="begin")
    assert states > 30


@pytest.mark.parametrize("what", list(CHECKS))
def test_without_syncs_this_would_fail(recorder: Path, tmp_path: Path, fast_folder: Path, what: str) -> None:
    operations = recorded(recorder, "tests.log.remove.recorded_remover", tmp_path / "disk", what, "unsynced")
    with pytest.raises(AssertionError, match=r"after \d+ of"):
        in_each_state(operations, tmp_path / "disk", fast_folder / "disk", CHECKS[what], torn=False, since="begin")

"""Every state that a power cut may leave of committing, sealing and publishing to a folder, of records or of feedback.

In each of them the next start has what was acknowledged, once, and goes on to seal and publish it.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from bon_server.config.settings import LogConfig
from bon_server.log.publish.publisher import publish_all
from bon_server.log.read.feedback import FeedbackReader
from bon_server.log.read.reader import LogReader
from bon_server.log.seal.sealing import seal
from bon_server.log.segments.files import listed
from bon_server.log.spool.spool import Spool
from bon_server.log.verify.verify import verify
from tests.log.crash_states import CrashState, Operation, in_each_state, recorded
from tests.log.spool.test_crash_states import fast_folder as fast_folder
from tests.log.spool.test_crash_states import recorder as recorder


def _trace(recorder: Path, tmp_path: Path, *arguments: str) -> list[Operation]:
    return recorded(recorder, "tests.log.seal.recorded_sealer", tmp_path / "disk", *arguments)


def _ids(folder: Path) -> list[str]:
    """Of records and observations."""
    with LogReader(folder) as reader, FeedbackReader(folder) as observed:
        return [*(one.request_id for one in reader.records()), *(one.feedback_id for one in observed.all())]


def _sealed(folder: Path) -> set[str]:
    return {*listed(folder), *listed(folder, "feedback")}


def _noted(state: CrashState, what: str) -> set[str]:
    return {line.split()[1] for line in state.notes if line.startswith(what)}


def _check(state: CrashState, disk: Path, met: Counter[str]) -> None:
    """Recovers, reads, seals and publishes; met: what kinds of states there were."""
    log, table = disk / "log", disk / "table"
    there = _sealed(table)
    for file in _noted(state, "published"):
        assert file in there, f"{file} is not in the store any more"
    assert not there or verify(table)["ok"]
    with closing(Spool.open(log)) as spool:
        found = _ids(log)
        assert len(set(found)) == len(found), "a record is there twice"
        assert _noted(state, "acknowledged") <= set(found) <= _noted(state, "submitted")
        report = verify(log)
        assert report["ok"], report["problems"]
        met.update(note["kind"] for note in report["notes"])
        before = _sealed(log)
        seal(spool, 1 << 30, 3_600.0)
        assert _ids(log) == found and before <= _sealed(log)
        report = verify(log)
        assert report["ok"], report["problems"]
        assert "interrupted_sealing" not in {note["kind"] for note in report["notes"]}
        result = publish_all(spool, LogConfig(publish=table.as_uri()), patience_s=0)
        assert result.failure is None
    met["published again"] += len(there & _sealed(log)) > 0 and result.published > 0
    if found:
        assert sorted(_ids(table)) == sorted(found) and verify(table)["ok"]


def _in_each_state(
    operations: list[Operation], old: Path, folder: Path, torn: bool, since: str | None = None
) -> Counter[str]:
    met: Counter[str] = Counter()
    met["states"] = in_each_state(
        operations, old, folder / "disk", lambda state, here: _check(state, here, met), torn=torn, since=since
    )
    return met


@pytest.mark.parametrize("torn", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.long])])
@pytest.mark.parametrize("kind", ["records", "feedback"])
def test_nothing_is_lost_or_doubled_by_a_power_cut(
    recorder: Path, tmp_path: Path, fast_folder: Path, kind: str, torn: bool
) -> None:
    operations = _trace(recorder, tmp_path, kind)
    assert sum(operation.data.startswith(b"published") for operation in operations) == 2
    # Half of the states come before that, of a log that is being made: spool/test_crash_states.py has them.
    met = _in_each_state(
        operations, tmp_path / "disk", fast_folder, torn, since=None if torn else f"submitted {kind}-0"
    )
    assert met["states"] > (300 if torn else 100)
    assert min(met["interrupted_sealing"], met["temporary_file"], met["published again"]) > 10, met


@pytest.mark.parametrize("kind", ["records", "feedback"])
def test_without_syncs_this_would_fail(recorder: Path, tmp_path: Path, fast_folder: Path, kind: str) -> None:
    operations = _trace(recorder, tmp_path, kind, "unsynced")
    with pytest.raises(AssertionError, match=r"after \d+ of"):
        _in_each_state(operations, tmp_path / "disk", fast_folder, torn=False)

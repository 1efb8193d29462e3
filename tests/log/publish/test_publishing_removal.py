"""Local copies of what is published go only when nobody needs them, and a crash meanwhile leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from bon_server.core.errors import LogError
from bon_server.log.publish import publishing
from bon_server.log.publish.publisher import publish_all
from bon_server.log.read.reader import LogReader
from bon_server.log.read.snapshot import make_snapshot
from bon_server.log.seal.sealing import seal
from bon_server.log.segments.files import listed
from bon_server.log.spool.spool import Spool
from bon_server.log.verify.verify import verify
from tests.log.publish.faulty_store import FaultyStore
from tests.log.publish.publishing import config, fill, published_ids, put_object
from tests.log.publish.publishing import faulty as faulty
from tests.log.publish.publishing import s3_port as s3_port
from tests.log.publish.publishing import soon as soon
from tests.log.publish.publishing import spool as spool
from tests.log.records import record


def test_local_copies_go_only_after_confirmation_and_the_replay_window(
    faulty: FaultyStore, tmp_path: Path, spool: Spool
) -> None:
    where = config(faulty, tmp_path, publish_keep_local=False)
    fill(spool, 2, replay_window_s=0)
    fill(spool, 1, start=2, replay_window_s=3_600)
    files = list(listed(tmp_path / "log"))
    make_snapshot(tmp_path / "log", "pins")
    fill(spool, 3, start=3, replay_window_s=0)
    faulty.next_faults("503", "503", "503", "503", "503", "503", method="PUT")
    publish_all(spool, where, patience_s=0)
    assert len(list(listed(tmp_path / "log"))) == 6
    faulty.fault = lambda method, path: None
    result = publish_all(spool, where, patience_s=0)
    assert (result.published, result.removed) == (6, 2)
    left = list(listed(tmp_path / "log"))
    assert left[:3] == files, "a snapshot names them"
    assert len(left) == 4, "the newest stays"
    with LogReader(tmp_path / "log") as reader:
        assert [one.request_id for one in reader.records()] == ["r0", "r1", "r2", "r5"]
        assert len(reader.removed) == 2
    assert verify(tmp_path / "log")["problems"] == []
    assert published_ids(faulty, tmp_path) == [f"r{i}" for i in range(6)]
    spool.append([record("r6")])
    seal(spool, 1 << 30, 0)
    assert publish_all(spool, where, patience_s=0).published == 1, "its number and name are new"
    assert spool.find("", "r2") is not None


def test_a_local_copy_stays_when_the_object_has_changed(faulty: FaultyStore, tmp_path: Path, spool: Spool) -> None:
    fill(spool, 2, replay_window_s=0)
    publish_all(spool, config(faulty, tmp_path), patience_s=0)
    first = next(listed(tmp_path / "log"))
    put_object(faulty.upstream_port, tmp_path.name, first, b"changed")
    result = publish_all(spool, config(faulty, tmp_path, publish_keep_local=False), patience_s=0)
    assert result.removed == 0 and "has changed" in str(result.failure)
    assert (tmp_path / "log" / first).exists()


def test_a_crash_while_removing_is_cleared_away(
    faulty: FaultyStore, tmp_path: Path, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(spool, 2, replay_window_s=0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(publishing, "_unlink", _interrupted)
        publish_all(spool, config(faulty, tmp_path, publish_keep_local=False), patience_s=0)
    assert len(list(listed(tmp_path / "log"))) == 2
    with LogReader(tmp_path / "log") as reader:
        assert [one.request_id for one in reader.records()] == ["r1"]
    report = verify(tmp_path / "log")
    assert report["ok"] and [note["kind"] for note in report["notes"]] == ["removed_segment"]
    publish_all(spool, config(faulty, tmp_path), patience_s=0)
    assert len(list(listed(tmp_path / "log"))) == 1


def _interrupted(path: Path) -> None:
    raise KeyboardInterrupt


def test_a_reader_that_goes_on_meets_segments_made_after_a_removal(
    faulty: FaultyStore, tmp_path: Path, spool: Spool
) -> None:
    """Its view of what was sealed must not shift when segments before it go."""
    fill(spool, 3, replay_window_s=0)
    spool.append([record("late")])
    missing: list[LogError] = []
    with LogReader(tmp_path / "log", missing.append) as reader:
        assert publish_all(spool, config(faulty, tmp_path, publish_keep_local=False), patience_s=0).removed == 2
        seal(spool, 1 << 30, 0)
        assert [one.request_id for one in reader.records()] == ["r2", "late"]
    assert len(missing) == 2 and all("is missing" in str(error) for error in missing)

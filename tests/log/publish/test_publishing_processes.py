"""Writers in processes of their own share a bucket, are killed, and go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from itertools import cycle
from pathlib import Path

import pytest

from bon_server.log import published
from bon_server.log.read.reader import LogReader
from bon_server.log.segments.files import listed
from bon_server.log.spool.database import SPOOL_NAME, open_for_reading
from tests.log.publish.faulty_store import FaultyStore, uri
from tests.log.publish.publishing import download, published_ids
from tests.log.publish.publishing import faulty as faulty
from tests.log.publish.publishing import s3_port as s3_port
from tests.log.publish.publishing import soon as soon
from tests.log.publish.publishing import spool as spool

ROOT = Path(__file__).parents[3]


def _child(folder: Path, faulty: FaultyStore, tmp_path: Path, groups: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.log.publish.publishing_writer", str(folder), uri(tmp_path.name)]
    arguments = [*command, faulty.options(tmp_path), str(groups)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=ROOT, env=os.environ)


def test_several_writers_share_one_bucket(faulty: FaultyStore, tmp_path: Path) -> None:
    faults = cycle([fault for one in ("503", "lost", "reset", "expired") for fault in (one, None, None, None)])
    faulty.fault = lambda method, path: next(faults) if method == "PUT" else None
    children = [_child(tmp_path / f"writer{i}", faulty, tmp_path, groups=4) for i in range(4)]
    acknowledged = []
    for child in children:
        lines = child.communicate(timeout=120)[0].decode().splitlines()
        assert child.returncode == 0 and lines[-1] == "published"
        acknowledged += lines[:-1]
    assert len(acknowledged) == 4 * 4 * 5
    assert published_ids(faulty, tmp_path) == sorted(acknowledged)
    copy = download(faulty.upstream_port, tmp_path.name, tmp_path / "all")
    with LogReader(copy) as reader:
        assert len(set(reader.writers) - {""}) == 4
    assert any(fault == "lost" for _, _, fault in faulty.requests)


@pytest.mark.parametrize("ending", [".parquet", ".json"])
def test_a_kill_between_upload_and_confirmation(faulty: FaultyStore, tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "writer"
    faulty.fault = lambda method, path: "held" if method == "PUT" and path.endswith(ending) else None
    child = _child(folder, faulty, tmp_path, groups=1)
    assert faulty.holding.wait(60)
    child.send_signal(signal.SIGKILL)
    lines = child.communicate(timeout=60)[0].decode().splitlines()
    faulty.release.set()
    faulty.fault = lambda method, path: None
    before = download(faulty.upstream_port, tmp_path.name, tmp_path / "before")
    assert list(listed(before)), "it was uploaded"
    with closing(open_for_reading(folder / SPOOL_NAME)) as database:
        waiting = published.waiting(database, uri(tmp_path.name))
        assert [one.file for one in waiting][:1] == list(listed(before))[:1], "and nobody has been told"
    lines += _child(folder, faulty, tmp_path, groups=1).communicate(timeout=60)[0].decode().splitlines()
    assert lines.pop() == "published"
    assert published_ids(faulty, tmp_path) == sorted(lines)

"""Publishing to a real S3 server, with faults on the way: each segment is there once, whole, whatever happened."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import closing
from pathlib import Path

import pytest

from bon_server.log import published
from bon_server.log.publish.publisher import Publisher, publish_all
from bon_server.log.publish.publishing import Publishing
from bon_server.log.publish.store import Store
from bon_server.log.read.reader import LogReader
from bon_server.log.segments.files import listed
from bon_server.log.spool.database import SPOOL_NAME, open_for_reading
from bon_server.log.spool.spool import Spool
from tests.log.publish.faulty_store import Fault, FaultyStore
from tests.log.publish.publishing import config, download, eventually, fill, published_ids
from tests.log.publish.publishing import faulty as faulty
from tests.log.publish.publishing import s3_port as s3_port
from tests.log.publish.publishing import soon as soon
from tests.log.publish.publishing import spool as spool


def test_segments_are_published_with_their_descriptions(faulty: FaultyStore, tmp_path: Path, spool: Spool) -> None:
    fill(spool, 3)
    result = publish_all(spool, config(faulty, tmp_path), patience_s=0)
    assert (result.published, result.waiting, result.failure) == (3, 0, None)
    assert published_ids(faulty, tmp_path) == ["r0", "r1", "r2"]
    with LogReader(tmp_path / "log") as reader:
        segment = reader.segments[0]
        assert len(list(reader.records())) == 3
    copy = download(faulty.upstream_port, tmp_path.name, tmp_path / "copy")
    assert (copy / segment.file).read_bytes() == (tmp_path / "log" / segment.file).read_bytes()
    described = json.loads((copy / published.description_of(segment.file)).read_text())
    assert described["sha256"] == hashlib.sha256((copy / segment.file).read_bytes()).hexdigest()
    assert (described["rows"], described["bytes"]) == (1, segment.bytes)
    faulty.requests.clear()
    assert publish_all(spool, config(faulty, tmp_path), patience_s=0).published == 0
    assert faulty.requests == [], "what is published is known without asking"


def test_the_state_is_kept_over_restarts(faulty: FaultyStore, tmp_path: Path) -> None:
    where = config(faulty, tmp_path)
    with closing(Spool.open(tmp_path / "log")) as spool:
        fill(spool, 2)
        faulty.next_faults(None, None, "503")  # the first segment and its description get through
        result = publish_all(spool, where, patience_s=0)
        assert (result.published, result.waiting) == (1, 1) and "503" in str(result.failure)
    with closing(Spool.open(tmp_path / "log")) as spool:
        faulty.requests.clear()
        assert publish_all(spool, where, patience_s=0).published == 1
        assert {path.rpartition("/")[2] for method, path, _ in faulty.requests if method == "PUT"} == {
            "000000000002-000000000002.parquet",
            "_000000000002-000000000002.json",
        }
    assert published_ids(faulty, tmp_path) == ["r0", "r1"]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("503", "server"),
        ("500", "server"),
        ("404", "missing"),
        ("403", "credentials"),
        ("expired", "credentials"),
        ("reset", "connection"),
        ("lost", "connection"),
        ("hang", "timeout"),
    ],
)
@pytest.mark.parametrize("at", [0, 1])
def test_every_fault_is_got_over(
    faulty: FaultyStore, tmp_path: Path, spool: Spool, fault: Fault, kind: str, at: int
) -> None:
    """at: the segment, or its description."""
    fill(spool, 2)
    faulty.next_faults(*([None] * at), fault, fault)
    with closing(open_for_reading(tmp_path / "log" / SPOOL_NAME)) as reading:
        trying = Publishing(
            spool, reading, config(faulty, tmp_path, publish_timeout_s=0.3 if fault == "hang" else 30.0)
        )
        assert not trying.round()
        assert trying.failures == {kind: 1} and trying.last_failure is not None
        assert "secret" not in str(trying.last_failure) and "segments/date=" in str(trying.last_failure)
        assert (trying.backlog.segments, trying.published) == (2, 0)
        while not trying.round():
            pass
        assert trying.failures == {kind: 2} and (trying.backlog.segments, trying.published) == (0, 2)
    assert published_ids(faulty, tmp_path) == ["r0", "r1"]


@pytest.mark.parametrize("fault", ["503", "lost", "reset"])
def test_a_confirmation_that_fails_is_asked_for_again(
    faulty: FaultyStore, tmp_path: Path, spool: Spool, fault: Fault
) -> None:
    fill(spool)
    faulty.next_faults(fault, method="HEAD")
    assert publish_all(spool, config(faulty, tmp_path), patience_s=0).waiting == 1
    assert publish_all(spool, config(faulty, tmp_path), patience_s=0).waiting == 0
    assert published_ids(faulty, tmp_path) == ["r0"]


def test_credentials_are_read_again(faulty: FaultyStore, tmp_path: Path, spool: Spool) -> None:
    fill(spool)
    where = config(faulty, tmp_path)
    faulty.options(tmp_path, key="old")
    with closing(Publisher(spool, where)) as running:
        eventually(lambda: running.publishing.failures["credentials"] > 2)
        assert running.publishing.published == 0
        faulty.options(tmp_path, key="valid")
        eventually(lambda: running.publishing.published == 1)
    assert set(running.publishing.failures) == {"credentials"}
    assert published_ids(faulty, tmp_path) == ["r0"]


def test_what_is_there_with_other_content_is_never_overwritten(
    faulty: FaultyStore, tmp_path: Path, spool: Spool
) -> None:
    fill(spool, 3)
    where = config(faulty, tmp_path)
    files = list(listed(tmp_path / "log"))
    store = Store(str(where.publish), where.publish_options, 1.0)
    same_length = b"x" * (tmp_path / "log" / files[1]).stat().st_size
    assert store.put(files[0], b"other") and store.put(files[1], same_length)
    result = publish_all(spool, where, patience_s=30)
    assert (result.published, result.waiting) == (1, 2), "the third is not kept from it"
    assert result.failure is not None and files[1] in result.failure and "not overwritten" in result.failure
    copy = download(faulty.upstream_port, tmp_path.name, tmp_path / "copy")
    assert (copy / files[0]).read_bytes() == b"other" and (copy / files[1]).read_bytes() == same_length


def test_a_damaged_local_file_is_not_published(faulty: FaultyStore, tmp_path: Path, spool: Spool) -> None:
    fill(spool, 2)
    file = next(listed(tmp_path / "log"))
    content = bytearray((tmp_path / "log" / file).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "log" / file).write_bytes(content)
    result = publish_all(spool, config(faulty, tmp_path), patience_s=30)
    assert (result.published, result.waiting) == (1, 1) and file in str(result.failure)
    assert published_ids(faulty, tmp_path) == ["r1"]


def test_a_store_that_hangs_delays_nothing(faulty: FaultyStore, tmp_path: Path) -> None:
    faulty.fault = lambda method, path: "hang"
    with closing(Spool.open(tmp_path / "log")) as spool:
        running = Publisher(spool, config(faulty, tmp_path, publish_timeout_s=30.0))
        fill(spool)
        eventually(lambda: bool(faulty.requests))
        began_s = time.monotonic()
        fill(spool, 5, start=1)
        assert running.publishing.published == 0
        running.close()
    assert time.monotonic() - began_s < 5
    assert running.publishing.backlog.segments >= 1

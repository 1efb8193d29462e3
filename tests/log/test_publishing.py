"""Publishing to a real S3 server, with faults on the way: each segment is there once, whole, whatever happened."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import cycle
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.dataset
import pytest

from bon_server.config import LogConfig
from bon_server.errors import ConfigError, LogError, StartupError
from bon_server.log import published, publisher, publishing
from bon_server.log.database import SPOOL_NAME, open_for_reading
from bon_server.log.publisher import Publisher, publish_all
from bon_server.log.publishing import Publishing
from bon_server.log.reader import LogReader
from bon_server.log.sealing import seal
from bon_server.log.segments import listed
from bon_server.log.snapshot import make_snapshot
from bon_server.log.spool import Spool
from bon_server.log.store import Store
from bon_server.log.verify import verify
from tests.log.faulty_store import Fault, FaultyStore, faulty_store, uri
from tests.log.records import record
from tests.log.s3_server import BUCKET, s3_server

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    """A real S3 server's."""
    with s3_server() as port:
        yield port


@pytest.fixture
def faulty(s3_port: int) -> Iterator[FaultyStore]:
    """A way to it on which there may be faults."""
    with faulty_store(s3_port) as store:
        yield store


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """An open spool in `tmp_path / "log"`."""
    with closing(Spool.open(tmp_path / "log")) as spool:
        yield spool


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long."""
    monkeypatch.setattr(publisher, "CHECK_S", 0.01)
    monkeypatch.setattr(publishing, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(publishing, "LONGEST_PAUSE_S", 0.05)


def config(faulty: FaultyStore, tmp_path: Path, **fields: Any) -> LogConfig:
    """Settings that publish to a prefix named after the test."""
    defaults: dict[str, Any] = {
        "publish": uri(tmp_path.name),
        "publish_options": faulty.options(tmp_path),
        "publish_timeout_s": 1.0,
        "publish_close_s": 0.5,
    }
    return LogConfig(**(defaults | fields))


def fill(spool: Spool, segments: int = 1, start: int = 0, replay_window_s: float = 3_600.0) -> None:
    """So many segments with a record each: `r0`, `r1`, ..."""
    for number in range(start, start + segments):
        spool.append([record(f"r{number}")])
        seal(spool, 1 << 30, replay_window_s)


def download(s3_port: int, prefix: str, folder: Path) -> Path:
    """All objects under a prefix, asked of the server itself."""
    listing = _get(f"http://127.0.0.1:{s3_port}/{BUCKET}?list-type=2&prefix={prefix}/").decode()
    for key in (part.partition("</Key>")[0] for part in listing.split("<Key>")[1:]):
        target = folder / key.removeprefix(f"{prefix}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_get(f"http://127.0.0.1:{s3_port}/{BUCKET}/{key}"))
    return folder


def _get(address: str, method: str = "GET", data: bytes | None = None) -> bytes:
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=any/20260101/us-east-1/s3/aws4_request"}
    with urllib.request.urlopen(urllib.request.Request(address, data, signed, method=method)) as answer:
        content: bytes = answer.read()
        return content


def ids(folder: Path) -> list[str]:
    """Request ids as DuckDB and Arrow find them in a folder of segments; both must agree."""
    log = duckdb.connect().read_parquet(str(folder / "segments/**/*.parquet"), hive_partitioning=True)
    by_duckdb = sorted(row[0] for row in log.project("request_id").fetchall())
    # Arrow reads the whole folder: what lies beside the segments must not disturb it.
    dataset = pyarrow.dataset.dataset(folder / "segments", format="parquet", partitioning="hive")
    assert sorted(dataset.to_table(columns=["request_id"])["request_id"].to_pylist()) == by_duckdb
    return by_duckdb


def published_ids(faulty: FaultyStore, tmp_path: Path) -> list[str]:
    """What is in the store, downloaded, verified, and read in three ways."""
    copy = download(faulty.upstream_port, tmp_path.name, tmp_path / f"copy-{time.monotonic_ns()}")
    assert verify(copy)["problems"] == []
    with LogReader(copy) as reader:
        assert reader.described.keys() == set(listed(copy))
        found = sorted(one.request_id for one in reader.records())
    assert found == ids(copy)
    return found


def eventually(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    """Waits for it."""
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "did not come true in time"
        time.sleep(0.01)


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
        trying = Publishing(spool, reading, config(faulty, tmp_path, publish_timeout_s=0.3))
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
    address = f"http://127.0.0.1:{faulty.upstream_port}/{BUCKET}/{tmp_path.name}/{first.replace('=', '%3D')}"
    _get(address, "PUT", b"changed")
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


def _child(folder: Path, faulty: FaultyStore, tmp_path: Path, groups: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.log.publishing_writer", str(folder), uri(tmp_path.name)]
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


def test_a_folder_is_a_store_too(tmp_path: Path, spool: Spool) -> None:
    fill(spool, 2)
    table = tmp_path / "a table"
    where = LogConfig(publish=f"{table.as_uri()}/")
    assert publish_all(spool, where, patience_s=0).published == 2
    assert ids(table) == ["r0", "r1"]
    assert verify(table)["problems"] == []
    for path in table.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    file = next(listed(table))
    (table / file).write_bytes(b"other")
    report = verify(table)
    assert {problem["kind"] for problem in report["problems"]} >= {"segment_size", "segment_unreadable"}
    elsewhere = LogConfig(publish=table.as_uri(), publish_keep_local=False)
    fill(spool, 1, start=2)
    assert publish_all(spool, elsewhere, patience_s=0).published == 1, "a slash at the end is no other place"
    assert not list(table.rglob("*.tmp"))


def test_damage_to_a_copy_is_named(tmp_path: Path, spool: Spool) -> None:
    fill(spool, 3)
    table = tmp_path / "table"
    publish_all(spool, LogConfig(publish=table.as_uri()), patience_s=0)
    first, second, third = listed(table)
    (table / first).unlink()
    (table / published.description_of(second)).write_text("{")
    content = bytearray((table / third).read_bytes())
    content[10] ^= 1
    (table / third).write_bytes(content)
    kinds = {(problem["kind"], problem["file"]) for problem in verify(table)["problems"]}
    assert {("segment_missing", first), ("description_damaged", "segments"), ("segment_changed", third)} <= kinds


@pytest.mark.parametrize(
    "wrong", ["nonsense", "/folder", "ftp://x/y", "s3://", "file://host/x", "memory:///", "http://host/x", "file:///"]
)
def test_what_cannot_be_published_to_is_refused(spool: Spool, wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"log\.publish .* allowed are"):
        Publisher(spool, LogConfig(publish=wrong))


def test_unknown_options_are_refused(tmp_path: Path, spool: Spool) -> None:
    (tmp_path / "options.toml").write_text("no_such_key = 1\n")
    with pytest.raises(ConfigError, match="no_such_key"):
        Publisher(spool, LogConfig(publish="s3://b/p", publish_options=str(tmp_path / "options.toml")))


def test_a_missing_package_is_named(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StartupError, match=r"bon-server\[publish\]"):
        Publisher(spool, LogConfig(publish="s3://bucket/prefix"))


def test_pauses_grow_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "FIRST_PAUSE_S", 1.0)
    monkeypatch.setattr(publishing, "LONGEST_PAUSE_S", 60.0)
    for failures, longest in ((1, 1.0), (2, 2.0), (5, 16.0), (9, 60.0), (10_000, 60.0)):
        pauses = [publishing.pause_s(failures) for _ in range(50)]
        assert longest / 2 <= min(pauses) and max(pauses) <= longest and len(set(pauses)) > 1

"""Tests of publishing share these: a real S3 server with faults on the way, and what is read back from it."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.dataset
import pytest

from bon_server.config.settings import LogConfig
from bon_server.log.publish import publisher, publishing
from bon_server.log.read.reader import LogReader
from bon_server.log.seal.sealing import seal
from bon_server.log.segments.files import listed
from bon_server.log.spool.spool import Spool
from bon_server.log.verify.verify import verify
from tests.log.publish.faulty_store import FaultyStore, faulty_store, uri
from tests.log.publish.s3_server import BUCKET, s3_server
from tests.log.records import record


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
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
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
    headers = {
        "Authorization": "AWS4-HMAC-SHA256 Credential=any/20260101/us-east-1/s3/aws4_request",
        "Content-Type": "application/octet-stream",
    }
    with urllib.request.urlopen(urllib.request.Request(address, data, headers, method=method)) as answer:
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


def put_object(s3_port: int, prefix: str, file: str, content: bytes) -> None:
    """Replaces an object behind everybody's back."""
    _get(f"http://127.0.0.1:{s3_port}/{BUCKET}/{prefix}/{file.replace('=', '%3D')}", "PUT", content)

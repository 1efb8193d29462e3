"""Where can be published to: folders too; and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bon_server.config import LogConfig
from bon_server.errors import ConfigError, StartupError
from bon_server.log import published, publishing
from bon_server.log.publisher import Publisher, publish_all
from bon_server.log.segments import listed
from bon_server.log.spool import Spool
from bon_server.log.verify import verify
from tests.log.publishing import fill, ids
from tests.log.publishing import soon as soon
from tests.log.publishing import spool as spool


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
    with pytest.raises(StartupError, match=r"bon-server with its extra \[publish\]"):
        Publisher(spool, LogConfig(publish="s3://bucket/prefix"))


def test_pauses_grow_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "FIRST_PAUSE_S", 1.0)
    monkeypatch.setattr(publishing, "LONGEST_PAUSE_S", 60.0)
    for failures, longest in ((1, 1.0), (2, 2.0), (5, 16.0), (9, 60.0), (10_000, 60.0)):
        pauses = [publishing.pause_s(failures) for _ in range(50)]
        assert longest / 2 <= min(pauses) and max(pauses) <= longest and len(set(pauses)) > 1

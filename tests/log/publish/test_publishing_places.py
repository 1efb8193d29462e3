"""Where can be published to: folders too; and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bon_server.config.settings import LogConfig
from bon_server.core.errors import ConfigError, StartupError
from bon_server.log import published
from bon_server.log.publish import publishing
from bon_server.log.publish.publisher import Publisher, publish_all
from bon_server.log.remove.erase import erase
from bon_server.log.remove.rewrite import Match
from bon_server.log.segments.files import listed
from bon_server.log.spool.database import SPOOL_NAME, open_for_reading
from bon_server.log.spool.spool import Spool
from bon_server.log.verify.verify import verify
from tests.log.publish.publishing import fill, ids
from tests.log.publish.publishing import soon as soon
from tests.log.publish.publishing import spool as spool


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


def _linked(log: Path, elsewhere: Path) -> Path:
    (elsewhere / "link").symlink_to(log)
    return elsewhere / "link"


def _segments_linked(log: Path, elsewhere: Path) -> Path:
    (log / "segments").mkdir(exist_ok=True)
    (elsewhere / "segments").symlink_to(log / "segments")
    return elsewhere


ITSELF: dict[str, Callable[[Path, Path], Path]] = {
    "the log": lambda log, elsewhere: log,
    "with dots": lambda log, elsewhere: log / "segments" / "..",
    "a link to it": _linked,
    "a folder in it": lambda log, elsewhere: log / "table",
    "a folder in it by a link": lambda log, elsewhere: _linked(log, elsewhere) / "table",
    "its segments": lambda log, elsewhere: log / "segments",
    "segments that are its own by a link": _segments_linked,
}


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "moved"])
@pytest.mark.parametrize("where", ITSELF.values(), ids=ITSELF.keys())
def test_a_log_is_not_published_to_itself(tmp_path: Path, where: Callable[[Path, Path], Path], keep: bool) -> None:
    """The local files, which would be the only ones, were removed as published."""
    log, elsewhere = tmp_path / "log", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with closing(Spool.open(log)) as spool:
        fill(spool, 3)
        config = LogConfig(publish=where(log, elsewhere).as_uri(), publish_keep_local=keep)
        with pytest.raises(ConfigError, match=r"log\.publish = 'file:"):
            Publisher(spool, config)
        with pytest.raises(ConfigError, match=r"log\.publish = 'file:"):
            publish_all(spool, config, patience_s=0)
    with pytest.raises(ConfigError, match="of their own"):
        erase(log, Match(request_id="nobody's"), config)
    assert ids(log) == ["r0", "r1", "r2"] and verify(log)["ok"]


def test_a_log_in_the_published_folder_is_well_there(tmp_path: Path) -> None:
    with closing(Spool.open(tmp_path / "log")) as spool:
        fill(spool, 2)
        config = LogConfig(publish=tmp_path.as_uri(), publish_keep_local=False)
        assert publish_all(spool, config, patience_s=0).published == 2
    assert ids(tmp_path) == ["r0", "r1"]
    assert {problem["kind"] for problem in verify(tmp_path)["problems"]} == {"foreign_file"}, (
        "which the log's are there"
    )


def test_but_not_among_its_segments(tmp_path: Path) -> None:
    log = tmp_path / "segments" / "log"
    with closing(Spool.open(log)) as spool, pytest.raises(ConfigError, match="among its segments"):
        Publisher(spool, LogConfig(publish=tmp_path.as_uri()))


def test_a_copy_that_has_become_the_file_itself_is_none(tmp_path: Path) -> None:
    """Linked behind the back of a server: neither published nor removed."""
    log, table = tmp_path / "log", tmp_path / "table"
    with closing(Spool.open(log)) as spool:
        fill(spool, 3)
        there = [log / file for file in listed(log)]
        config = LogConfig(publish=table.as_uri(), publish_keep_local=False, replay_window_s=0.0)
        with closing(open_for_reading(log / SPOOL_NAME)) as reading:
            one = publishing.Publishing(spool, reading, config)
            (table / "segments").symlink_to(log / "segments")
            one.round()
            assert one.last_failure is not None and "is the file of the log itself" in str(one.last_failure)
            assert (one.published, one.removed) == (0, 0)
    assert all(path.exists() for path in there) and ids(log) == ["r0", "r1", "r2"]

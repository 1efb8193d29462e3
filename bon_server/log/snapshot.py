"""Snapshots: a name for a list of sealed files, with the digest of each.

    LOG/snapshots/NAME.json      {"name", "segments": [{"file", "rows", "bytes", "sha256"}]}

A snapshot copies nothing: segments never change. What is still in the spool is not part of it; seal first. It holds no
time and no machine, so the same segments make the same snapshot.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypedDict

import msgspec

from bon_server.errors import ConfigError, LogError
from bon_server.log.reader import LogReader
from bon_server.log.whole_file import make_folder, whole_file

FOLDER = "snapshots"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Pinned(TypedDict):
    """One segment of a snapshot."""

    file: str
    """Relative to the log folder."""
    rows: int
    bytes: int
    sha256: str


class Snapshot(TypedDict):
    """`NAME.json`, also printed by `bon log snapshot --json`."""

    name: str
    segments: list[Pinned]
    """In the order of the log."""


def make_snapshot(directory: Path, name: str) -> Snapshot:
    """Pins the segments there are; the same again when it is there already. Works while a server writes.

    Raises `ConfigError` for a name that cannot be a file's, and `LogError` when there is no log or the name is taken by
    a snapshot of something else.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name: {name!r} given; allowed are 1 to 100 letters, digits, '.', '_' and '-', no '.' first")
    with LogReader(directory) as reader:
        segments = reader.segment_sources()
    pinned = [
        Pinned(
            file=source.file.relative_to(directory).as_posix(),
            rows=source.rows,
            bytes=source.bytes,
            sha256=source.sha256,
        )
        for source in segments
    ]
    snapshot = Snapshot(name=name, segments=pinned)
    path = directory / FOLDER / f"{name}.json"
    if path.exists():
        if read_snapshot(path) != snapshot:
            raise LogError(f"{path} is a snapshot of other segments; choose another name")
        return snapshot
    make_folder(path.parent)
    with whole_file(path) as file:
        file.write(msgspec.json.format(msgspec.json.encode(snapshot), indent=1) + b"\n")
    return snapshot


def read_snapshot(path: Path) -> Snapshot:
    """Raises `LogError` for a file that is no snapshot."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Snapshot)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LogError(f"{path} is damaged or no snapshot ({type(error).__name__})") from error
    except OSError as error:
        raise LogError(f"{path} cannot be read: {error.strerror}") from error


def snapshot_files(directory: Path) -> list[Path]:
    """The snapshots of a log, sorted by name."""
    return sorted((directory / FOLDER).glob("*.json"))

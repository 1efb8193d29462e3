"""Snapshots: a name for a list of sealed files, with the digest of each.

    LOG/snapshots/NAME.json      {"name", "segments": [{"file", "rows", "bytes", "sha256"}], "stale"?: [FILE]}

A snapshot copies nothing: segments do not change, but for an erasure, which says so in the snapshots that it makes
stale. What is still in the spool is not part of it; seal first. It holds no time and no machine, so the same segments
make the same snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NotRequired, TypedDict

import msgspec

from bon_server.core.errors import ConfigError, LogError
from bon_server.log.catalog import Segment
from bon_server.log.read.reader import LogReader, refuse_damage
from bon_server.log.segments.files import footer_sha256, naming, place_of
from bon_server.system.files import make_folder, sha256_of, sync_folder, whole_file

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
    stale: NotRequired[list[str]]
    """Files that hold fewer records than were pinned, because some were erased; sorted."""


def make_snapshot(directory: Path, name: str) -> Snapshot:
    """Pins the segments there are; the same again when it is there already. Works while a server writes.

    Raises `ConfigError` for a name that cannot be a file's, and `LogError` when there is no log or the name is taken by
    a snapshot of something else.
    """
    path = _path(directory, name)
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
    if path.exists():
        there = read_snapshot(path)
        if there.get("stale"):
            raise LogError(f"{path} is stale: records of its segments were erased; choose another name")
        if there != snapshot:
            raise LogError(f"{path} is a snapshot of other segments; choose another name")
        return snapshot
    _write(path, snapshot)
    _check_still_there(directory, path, snapshot)
    return snapshot


def open_snapshot(directory: Path, name: str, on_damage: Callable[[LogError], None] = refuse_damage) -> LogReader:
    """A reader of exactly the segments that a snapshot pins, each of which is first compared with its digest.

    on_damage: called also with segments that are missing or have changed, which are left out when it returns.

    Raises `ConfigError` for a name that cannot be a file's, and `LogError` when there is no such snapshot, or records
    of its segments were erased since: what it pinned is no longer there to be read.
    """
    path = _path(directory, name)
    snapshot = read_snapshot(path)
    stale = snapshot.get("stale")
    if stale:
        raise LogError(f"{path} is stale: records of {', '.join(stale)} were erased; make a snapshot of what is left")
    segments = []
    for one in snapshot["segments"]:
        try:
            segments.append(_unchanged(directory, one))
        except LogError as error:
            on_damage(error)
    return LogReader(directory, on_damage, segments)


def _unchanged(directory: Path, pinned: Pinned) -> Segment:
    path, place = directory / pinned["file"], place_of(pinned["file"])
    if place is None:
        raise LogError(f"{path} is in a snapshot and is no segment")
    with naming(path):
        if path.stat().st_size != pinned["bytes"] or sha256_of(path) != pinned["sha256"]:
            raise LogError(f"{path} has changed since it was pinned")
        return Segment(
            pinned["file"],
            place.first_ordinal,
            place.last_ordinal,
            pinned["rows"],
            pinned["bytes"],
            pinned["sha256"],
            footer_sha256(path),
            replayable_until_us=0,
        )


def _path(directory: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"snapshot: {name!r} given; allowed are 1 to 100 letters, digits, '.', '_' and '-', no '.' first"
        )
    return directory / FOLDER / f"{name}.json"


def _check_still_there(directory: Path, path: Path, snapshot: Snapshot) -> None:
    """The retention looks for snapshots after it took files out of the log, this for such files after it pinned them:
    one of the two sees the other."""
    with LogReader(directory) as reader:
        there = {part.path for part in reader.parts}
    if any(directory / one["file"] not in there for one in snapshot["segments"]):
        path.unlink()
        sync_folder(path.parent)
        raise LogError(f"{path}: segments expired while it was made; try again")


def mark_stale(directory: Path, files: Collection[str]) -> list[str]:
    """Says in each snapshot which of these files it pinned; returns the names of these snapshots.

    What is no snapshot any more is passed by: nothing can rest on it, and `bon log verify` names it.
    """
    names = []
    for path in snapshot_files(directory):
        try:
            snapshot = read_snapshot(path)
        except LogError:
            continue
        pinned = {one["file"] for one in snapshot["segments"]} & set(files)
        if pinned:
            snapshot["stale"] = sorted(pinned | set(snapshot.get("stale", [])))
            _write(path, snapshot)
            names.append(snapshot["name"])
    return names


def _write(path: Path, snapshot: Snapshot) -> None:
    make_folder(path.parent)
    with whole_file(path) as file:
        file.write(msgspec.json.format(msgspec.json.encode(snapshot), indent=1) + b"\n")


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

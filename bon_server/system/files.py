"""Files and folders that appear whole or not at all: temporary name, fsync, rename, fsync of the folder.

`whole_file` replaces a file of the same name; `new_file` never does. `make_folder` makes a folder of a log, and
`build_whole` a model directory, which is built once and bears a stamp of what it was made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bon_server.core.errors import LogError


class NameTaken(LogError):
    """There is another file already; it is left as it is."""


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Makes a folder durable, with all that is in it."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def sha256_of(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_name(path: Path) -> Path:
    """Where a file is written until it is whole; the same every time, so that a crash leaves at most one."""
    return path.with_name(f".{path.name}.tmp")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes its name when the block ends well, and is removed when it does not."""
    temporary = temporary_name(path)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def new_file(path: Path, is_same: Callable[[Path, Path], bool]) -> Iterator[BinaryIO]:
    """As `whole_file`, but replaces nothing. Raises `NameTaken` when there is a file that is not the same.

    is_same: whether the file that is there (first) is as good as the new one; then it stays.
    """
    temporary = temporary_name(path)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a rename it replaces nothing
        except FileExistsError:
            if not is_same(path, temporary):
                raise NameTaken(f"{path} is there already with other content: look at it, and move it away") from None
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Makes a folder of a log durably, with its parents, for its owner only. Raises `LogError`."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        for each in reversed(missing):
            each.mkdir(mode=0o700, exist_ok=True)
        for changed in (folder, *(made.parent for made in missing)):
            sync_folder(changed)
    except OSError as error:
        raise LogError(f"{folder} cannot be used as a log folder: {error.strerror}") from error


STAMP_FILE = "demo_model.json"


def build_whole(directory: Path, stamp: Mapping[str, str], write: Callable[[Path], None]) -> Path:
    """Returns `directory` holding what `write` writes, with `stamp` (what it was made from) beside it.

    A directory that already bears the same stamp is left alone; one with another stamp is replaced. Files are written
    to a temporary neighbour, synced, and renamed, so that a crash leaves either nothing or a whole model.

    Raises:
        FileExistsError: `directory` holds something that was not built here.
    """
    directory = directory.absolute()
    if _stamp_of(directory) == dict(stamp):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        write(fresh)
        (fresh / STAMP_FILE).write_text(json.dumps(dict(stamp), indent=1, sort_keys=True) + "\n")
        sync_tree(fresh)
        if directory.exists() and any(directory.iterdir()):
            directory.rename(Path(scratch) / "old")
        fresh.rename(directory)
    sync_folder(directory.parent)
    return directory


def _stamp_of(directory: Path) -> dict[str, str] | None:
    if not directory.exists() or not any(directory.iterdir()):
        return None
    stamp_file = directory / STAMP_FILE
    if not stamp_file.is_file():
        raise FileExistsError(f"directory: {directory} is not empty and has no {STAMP_FILE}; give a new one")
    stamp: dict[str, str] = json.loads(stamp_file.read_text())
    return stamp

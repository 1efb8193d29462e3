"""Files that appear whole or not at all: temporary name, fsync, rename, fsync of the folder. And folders that stay."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bon_server.errors import LogError


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

"""Checkpoints in a watched folder: which are there, the newest first.

    FOLDER/step-100/          a model directory, or that of an adapter
    FOLDER/step-200/          a newer one: it wins
    FOLDER/current            optional, and then it alone decides: a link to a directory, or a file with its name

Reads names and times, never a model.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bon_server.weights import HUB_FILES

POINTER = "current"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model directory as it was at one look."""

    directory: Path
    """Resolved: no link is in it."""
    signature: str
    """Changes whenever one of its files does: hex SHA-256 of names, places, sizes and times."""


def checkpoints(folder: Path) -> list[Checkpoint]:
    """Those in a folder, the newest first: the one that was changed last, or the one that `current` names.

    What has neither `config.json` nor `adapter_config.json` is none, nor is what has a name beginning with a dot. A
    folder that cannot be read has none.
    """
    try:
        pointed = _pointed(folder / POINTER)
        directories = _directories(folder) if pointed is None else [pointed]
    except OSError:
        return []
    found = []
    for directory in directories:
        with suppress(OSError, ValueError):  # it is just being removed, or what points to it holds no path
            found.append((_newest_ns(directory), directory.name, look_at(directory)))
    return [one for _, _, one in sorted(found, key=lambda each: each[:2], reverse=True)]


def look_at(directory: Path) -> Checkpoint:
    """The checkpoint as it is now. Raises OSError: it is not there, or neither a model nor an adapter."""
    directory = directory.resolve(strict=True)
    if not (directory / "config.json").exists():
        (directory / "adapter_config.json").stat()
    lines = []
    for path in _files(directory):
        status = path.stat()
        lines.append(
            f"{path.name} {status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        )
    return Checkpoint(directory, hashlib.sha256("\n".join(lines).encode()).hexdigest())


def _pointed(pointer: Path) -> Path | None:
    """Where the pointer points, there or not; None: there is no pointer."""
    if pointer.is_symlink() or pointer.is_dir():
        return pointer
    with suppress(OSError, UnicodeDecodeError):
        return pointer.parent / pointer.read_text(encoding="utf-8").strip()
    return None


def _directories(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir()]


def _files(directory: Path) -> list[Path]:
    """What a model is loaded from."""
    return sorted({path for pattern in HUB_FILES for path in directory.glob(pattern)})


def _newest_ns(directory: Path) -> int:
    """When the directory or one of its files was changed last, by the file system's clock.

    By the time of change, not of modification: copying tools preserve the latter, and a directory that is moved here
    is new here, whenever its files were written.
    """
    return max(os.stat(path).st_ctime_ns for path in (directory, *_files(directory)))  # noqa: PTH116 -- follows links

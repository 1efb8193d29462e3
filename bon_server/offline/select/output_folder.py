"""The folder a selection is written to: never mixed with anything else.

While a selection is being made the folder holds the work folder `.selecting`, with what it is of and with what is done
so far. A run that was killed leaves it behind; the same command then goes on from there, another one starts over. A
finished selection is only ever replaced by itself, file by file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bon_server.core.errors import BonError, LogError
from bon_server.offline.select.manifest import MANIFEST_NAME, Manifest, read_manifest
from bon_server.system.files import sha256_of, sync_folder, whole_file
from bon_server.system.lock import LOCK_NAME, WriterLock

WORK_NAME = ".selecting"
_IDENTITY_NAME = "selection.json"
_OURS = ("part-*", "meta.parquet", ".*.tmp")


def finished(folder: Path) -> Manifest | None:
    """The selection in the folder; None: it is missing or empty, or holds one that was never finished.

    Raises `LogError` when the folder holds anything else.
    """
    try:
        present = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LogError(f"{folder} cannot be used: {error.strerror or error}") from error
    if not present or (WORK_NAME in present and MANIFEST_NAME not in present):
        return None
    there = read_manifest(folder)
    if there is None:
        raise LogError(f"{folder} is not empty and holds no selection; choose another folder")
    return there


def check_same(folder: Path, there: Manifest, wanted: dict[str, Any]) -> None:
    """Raises `LogError` when the selection in the folder is not the one that is wanted. wanted: keys of a manifest."""
    different = [key for key in (*wanted, "snapshot") if there.get(key) != wanted.get(key)]
    if different:
        names = ", ".join(dict.fromkeys(different))
        raise LogError(f"{folder} holds another selection (its {names}); choose another folder")


def is_intact(folder: Path, manifest: Manifest) -> bool:
    """Whether all files of a selection are as they were written."""
    with suppress(OSError):
        return all(sha256_of(folder / one["file"]) == one["sha256"] for one in manifest["outputs"])
    return False


@contextmanager
def working(folder: Path, there: Manifest | None, identity: dict[str, Any]) -> Iterator[Path]:
    """The work folder, with what an earlier run of the same selection left in it; removed when all is done.

    there: the selection that was in the folder when it was looked at; identity: what the new one is of. After an error
    that running again would meet again, nothing is left behind. Raises `LogLocked` while another process writes here.
    """
    was_there = folder.exists()
    described = json.dumps(identity, sort_keys=True).encode()
    with _alone(folder) as work:
        if finished(folder) != there:
            raise LogError(f"{folder} was written by another process meanwhile")
        try:
            if not _is_of(work, described):
                _start_over(folder, work, described)
            yield work
            _remove(work)
            sync_folder(folder)
        except BonError:
            _clear(folder, work)
            _remove(work)
            if not was_there:
                with suppress(OSError):  # which would hide what happened
                    folder.rmdir()
            raise


def sweep(folder: Path) -> None:
    """Removes what a run left behind that was killed after its last file was there."""
    if (folder / WORK_NAME).exists():
        with _alone(folder) as work:
            _remove(work)


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """The work folder, made if missing, for one process at a time."""
    work = folder / WORK_NAME
    try:
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = WriterLock(work)
        try:
            yield work
        finally:
            lock.release()
    except OSError as error:
        raise LogError(f"{folder} cannot be written: {error.strerror or error}") from error


def _is_of(work: Path, described: bytes) -> bool:
    try:
        return (work / _IDENTITY_NAME).read_bytes() == described
    except FileNotFoundError:
        return False


def _start_over(folder: Path, work: Path, described: bytes) -> None:
    _clear(folder, work)
    sync_folder(folder)
    with whole_file(work / _IDENTITY_NAME) as file:
        file.write(described)


def _clear(folder: Path, work: Path) -> None:
    """Removes what an unfinished selection left; the work folder stays, which says that the rest is ours.

    A finished one that was being made again stays.
    """
    if not (folder / MANIFEST_NAME).exists():
        for pattern in _OURS:
            for path in folder.glob(pattern):
                path.unlink()
    (work / _IDENTITY_NAME).unlink(missing_ok=True)
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK_NAME:
            path.unlink()


def _remove(work: Path) -> None:
    """What is of no selection any more is never gone on with, should this be cut off."""
    (work / _IDENTITY_NAME).unlink(missing_ok=True)
    shutil.rmtree(work)

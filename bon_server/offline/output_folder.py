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

from bon_server.errors import BonError, LogError
from bon_server.log.whole_file import sha256_of, sync_folder, whole_file
from bon_server.offline.manifest import MANIFEST_NAME, Manifest, read_manifest

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
def working(folder: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """The work folder, with what an earlier run of the same selection left in it; removed when all is done.

    identity: what the selection is of. After an error that running again would meet again, nothing is left behind.
    """
    work, was_there = folder / WORK_NAME, folder.exists()
    described = json.dumps(identity, sort_keys=True).encode()
    try:
        if not _is_of(work, described):
            _start_over(folder, work, described)
        yield work
        shutil.rmtree(work)
        sync_folder(folder)
    except BonError:
        _clear(folder, work)
        if not was_there and folder.exists():
            folder.rmdir()
        raise
    except OSError as error:
        raise LogError(f"{folder} cannot be written: {error.strerror or error}") from error


def _is_of(work: Path, described: bytes) -> bool:
    try:
        return (work / _IDENTITY_NAME).read_bytes() == described
    except FileNotFoundError:
        return False


def _start_over(folder: Path, work: Path, described: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if work.exists():
        _clear(folder, work)
    work.mkdir(mode=0o700)
    sync_folder(folder)
    with whole_file(work / _IDENTITY_NAME) as file:
        file.write(described)


def _clear(folder: Path, work: Path) -> None:
    """Removes what an unfinished selection left; the work folder last, which says that the rest is ours.

    A finished one that was being made again stays.
    """
    if not work.exists():
        return
    if not (folder / MANIFEST_NAME).exists():
        for pattern in _OURS:
            for path in folder.glob(pattern):
                path.unlink()
    shutil.rmtree(work)

"""A model directory that appears whole or not at all, and is built once."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from bon_server.log.whole_file import sync_folder, sync_tree

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

"""The folder a selection is written to: never mixed with anything else.

While a selection is being written the folder holds the marker `.selecting`; a run that was killed leaves it behind, and
the next run starts over. A finished selection is only ever replaced by itself, file by file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bon_server.errors import LogError
from bon_server.log.whole_file import sync_folder
from bon_server.offline.manifest import Manifest, read_manifest

MARKER_NAME = ".selecting"
_OURS = ("part-*.jsonl", "meta.parquet", "manifest.json", ".*.tmp")
_IDENTITY = ("rule", "format", "seed", "k", "filters", "inputs", "snapshot")


@contextmanager
def prepare(folder: Path, manifest: Manifest) -> Iterator[None]:
    """Makes the folder ready to be written to; on leaving without an error the selection counts as finished.

    Raises `LogError` when the folder holds files of others, or a selection that `manifest` does not describe.
    """
    marker = folder / MARKER_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = {path.name for path in folder.iterdir()}
        if present and MARKER_NAME not in present:
            _check_same(folder, manifest)
            yield
            return
        marker.touch(mode=0o600)
        for pattern in _OURS:
            for path in folder.glob(pattern):
                path.unlink()
        yield
        marker.unlink()
        sync_folder(folder)
    except OSError as error:
        raise LogError(f"{folder} cannot be written: {error.strerror or error}") from error


def _check_same(folder: Path, manifest: Manifest) -> None:
    there = read_manifest(folder)
    if there is None:
        raise LogError(f"{folder} is not empty and holds no selection; choose another folder")
    different = [key for key in _IDENTITY if there.get(key) != manifest.get(key)]
    if different:
        raise LogError(f"{folder} holds another selection (its {', '.join(different)}); choose another folder")

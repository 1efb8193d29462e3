"""Rows of added scores go when their records do. Whoever calls this holds `changing_scores`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bon_server.log.rewrite import Key, Match, matching_rows, rewrite
from bon_server.log.score_files import FOLDER, SCORES, ScoreFile, overlapping, read_scores, score_files
from bon_server.log.segments import Table
from bon_server.log.whole_file import sync_folder

_TABLE = Table(FOLDER, SCORES, [("ordinal", "ascending")])


def erase_scores(directory: Path, match: Match, keys: Collection[Key]) -> dict[str, int]:
    """Removes the scores of the records that match or have one of the keys; returns rows removed by file.

    Raises `LogError` when a file cannot be read, so that it is not known what it holds.
    """
    removed = {}
    for file in score_files(directory):
        found = set(matching_rows(file.path, match, keys))
        if found:
            _remove(file, found)
            removed[file.path.relative_to(directory).as_posix()] = len(found)
    return removed


def expire_scores(directory: Path, writer: str, ordinals: NDArray[np.int64]) -> None:
    """Removes the scores of records of a writer. Raises `LogError` for a file that cannot be read."""
    for file in overlapping(score_files(directory), writer, int(ordinals.min()), int(ordinals.max())):
        table = read_scores(file.path, ("ordinal", "principal", "request_id", "attempt"))
        gone = np.flatnonzero(np.isin(table["ordinal"].to_numpy(), ordinals))
        keys: set[Any] = {(row["principal"], row["request_id"], row["attempt"]) for row in table.take(gone).to_pylist()}
        if keys:
            _remove(file, keys)


def _remove(file: ScoreFile, keys: Collection[Key]) -> None:
    """A file of which nothing is left goes."""
    with rewrite(file.path, _TABLE, keys) as version:
        pass
    if not version.rows:
        file.path.unlink()
        sync_folder(file.path.parent)

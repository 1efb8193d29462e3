"""Added scores joined to the records that they are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import structs
from numpy.typing import NDArray

from bon_server.core.errors import LogError
from bon_server.core.types import CandidateStatus
from bon_server.log.record import Record
from bon_server.log.scores.files import FOLDER, ScoreFile, read_scores, score_files, score_names, within

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
IDENTITY = ("principal", "request_id", "attempt")
"""Columns of a record that its row of scores has too."""
KEY = ("ordinal", *IDENTITY)
"""What `join` looks at. The ordinal alone is not enough: with durability `async` a power cut may take the newest
records and leave their scores, and then the ordinals are given again."""
STATUSES = tuple(CandidateStatus)
NOT_THERE = -1
"""Instead of a status: nobody has rescored the candidate."""
_KEPT_FILES = 32
"""In memory, mostly below a thousand rows each; neighbouring batches need the same ones."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A file of scores: (r,) rows by ordinal, (c,) candidates, those of a row together."""

    ordinals: Ints
    identities: Any
    """(r,) rows of an Arrow table with the columns `IDENTITY`."""
    starts: Ints
    lengths: Ints
    rewards: Floats
    statuses: NDArray[np.int8]


def join(
    files: Sequence[ScoreFile], records: Any, lengths: Ints, on_damage: Callable[[ScoreFile, LogError], None]
) -> tuple[Floats, NDArray[np.int8]]:
    """Rewards and statuses of the candidates of records of one writer.

    files: of one name and that writer. records: an Arrow batch with the columns `KEY`, (n,) rows; lengths: (n,) how
    many candidates each has. on_damage: called with each file that cannot be read or is of other records, which is
    left out when it returns.

    Returns (c,) rewards, NaN where there is none, and (c,) positions in `STATUSES`, or `NOT_THERE`.
    """
    ordinals = records["ordinal"].to_numpy()
    starts = np.cumsum(lengths) - lengths
    rewards = np.full(int(lengths.sum()), np.nan)
    statuses = np.full(len(rewards), NOT_THERE, dtype=np.int8)
    first_last = (int(ordinals.min()), int(ordinals.max())) if len(ordinals) else (0, -1)
    for file in within(files, *first_last):
        try:
            loaded = _load(file.path)
            rows, theirs = _matches(file, loaded, records, ordinals, lengths)
        except LogError as error:
            on_damage(file, error)
            continue
        targets, sources = _spread(starts[rows], lengths[rows]), _spread(loaded.starts[theirs], lengths[rows])
        rewards[targets], statuses[targets] = loaded.rewards[sources], loaded.statuses[sources]
    return rewards, statuses


def _matches(file: ScoreFile, loaded: _Loaded, records: Any, ordinals: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """Rows of the batch that the file has, and where it has them."""
    if not len(loaded.ordinals):  # for a moment, before an erasure removes the file
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    place = np.minimum(np.searchsorted(loaded.ordinals, ordinals), len(loaded.ordinals) - 1)
    rows = np.flatnonzero(loaded.ordinals[place] == ordinals)
    theirs = place[rows]
    same = loaded.lengths[theirs] == lengths[rows]
    for name in IDENTITY:
        equal = pc.equal(loaded.identities[name].take(pa.array(theirs)), records[name].take(pa.array(rows)))
        same &= equal.fill_null(False).to_numpy(zero_copy_only=False)
    if not same.all():
        raise LogError(
            f"{file.path}: row {ordinals[rows[~same][0]]} is of another record than the log's; remove this file and run"
            " bon rescore again"
        )
    return rows, theirs


def _spread(starts: Ints, lengths: Ints) -> Ints:
    """starts[0], starts[0] + 1, … (lengths[0] of them), starts[1], …"""
    before = np.cumsum(lengths) - lengths
    spread: Ints = np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
    return spread


def _load(path: Path) -> _Loaded:
    try:
        there = path.stat()
    except OSError as error:
        raise LogError(f"{path} is missing") from error
    return _load_version(path, there.st_ino, there.st_mtime_ns)  # an erasure puts another file in its place


@lru_cache(_KEPT_FILES)
def _load_version(path: Path, inode: int, changed_ns: int) -> _Loaded:
    table = read_scores(path, (*KEY, "candidates"))
    candidates = table["candidates"].combine_chunks()
    lengths = candidates.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = candidates.flatten()
    codes = pc.index_in(flat.field("status"), value_set=pa.array([str(one) for one in STATUSES]))
    return _Loaded(
        ordinals=table["ordinal"].to_numpy(),
        identities=pa.RecordBatch.from_arrays([table[name].combine_chunks() for name in IDENTITY], list(IDENTITY)),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        rewards=flat.field("reward").to_numpy(zero_copy_only=False).astype(np.float64),
        statuses=codes.fill_null(NOT_THERE).to_numpy(zero_copy_only=False).astype(np.int8),
    )


class AddedScores:
    """All added scores of a log, as they were when it was opened.

    on_damage: called once with each file that cannot be read or is of other records, which is left out when it returns.
    """

    def __init__(self, directory: Path, on_damage: Callable[[LogError], None]) -> None:
        self._on_damage = on_damage
        files = score_files(directory) if (directory / FOLDER).is_dir() else []
        self._files = {
            name: [file for file in files if file.name == name] for name in (score_names(directory) if files else ())
        }

    @property
    def names(self) -> list[str]:
        """Under which there are any."""
        return list(self._files)

    def column(self, name: str, writer: str, records: Any, lengths: Ints) -> Floats:
        """(c,) the rewards under a name, NaN where there is none; see `join`."""
        files = [file for file in self._files.get(name, ()) if file.writer == writer]
        return join(files, records, lengths, self._leave_out)[0]

    def joined(self, writer: str, record: Record) -> Record:
        """The record with its added scores among the `rewards` of its candidates."""
        key = {name: [getattr(record, name)] for name in KEY}
        records, lengths = pa.RecordBatch.from_pydict(key), np.array([len(record.candidates)])
        added = {name: self.column(name, writer, records, lengths) for name in self._files}
        candidates = []
        for index, candidate in enumerate(record.candidates):
            more = {name: float(rewards[index]) for name, rewards in added.items() if np.isfinite(rewards[index])}
            if more:
                candidate = structs.replace(candidate, rewards={**candidate.rewards, **more})
            candidates.append(candidate)
        return replace(record, candidates=tuple(candidates))

    def _leave_out(self, file: ScoreFile, error: LogError) -> None:
        if file.path.exists():  # it goes when all of its records are erased
            self._on_damage(error)
        self._files[file.name].remove(file)

"""Added scores joined to the records that they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bon_server.errors import LogError
from bon_server.log.record import Record
from bon_server.log.score_files import ScoreFile, overlapping, read_scores, score_files, score_names
from bon_server.types import CandidateStatus

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
STATUSES = tuple(CandidateStatus)
NOT_THERE = -1
"""Instead of a status: nobody has rescored the candidate."""
_KEPT_FILES = 32
"""In memory, mostly below a thousand rows each; neighbouring batches need the same ones."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A file of scores: (r,) rows by ordinal, (c,) candidates, those of a row together."""

    ordinals: Ints
    starts: Ints
    lengths: Ints
    rewards: Floats
    statuses: NDArray[np.int8]


def join(files: Sequence[ScoreFile], ordinals: Ints, lengths: Ints) -> tuple[Floats, NDArray[np.int8]]:
    """Rewards and statuses of the candidates of records of one writer.

    files: of one name, with rows of that writer's ordinals, as far as there are any. ordinals, lengths: (n,) of the
    records, and how many candidates each has.

    Returns (c,) rewards, NaN where there is none, and (c,) positions in `STATUSES`, or `NOT_THERE`. Raises `LogError`
    when a file cannot be read, or is of other records.
    """
    starts = np.cumsum(lengths) - lengths
    rewards = np.full(int(lengths.sum()), np.nan)
    statuses = np.full(len(rewards), NOT_THERE, dtype=np.int8)
    for file in files:
        loaded = _load(file.path)
        if not len(loaded.ordinals):  # for a moment, before an erasure removes the file
            continue
        place = np.minimum(np.searchsorted(loaded.ordinals, ordinals), len(loaded.ordinals) - 1)
        rows = np.flatnonzero(loaded.ordinals[place] == ordinals)
        theirs = place[rows]
        different = loaded.lengths[theirs] != lengths[rows]
        if different.any():
            raise LogError(f"{file.path}: row {ordinals[rows[different][0]]} is not of the record of this ordinal")
        targets, sources = _spread(starts[rows], lengths[rows]), _spread(loaded.starts[theirs], lengths[rows])
        rewards[targets], statuses[targets] = loaded.rewards[sources], loaded.statuses[sources]
    return rewards, statuses


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
    table = read_scores(path, ("ordinal", "candidates"))
    candidates = table["candidates"].combine_chunks()
    lengths = candidates.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = candidates.flatten()
    codes = pc.index_in(flat.field("status"), value_set=pa.array([str(one) for one in STATUSES]))
    return _Loaded(
        ordinals=table["ordinal"].to_numpy(),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        rewards=flat.field("reward").to_numpy(zero_copy_only=False).astype(np.float64),
        statuses=codes.fill_null(NOT_THERE).to_numpy(zero_copy_only=False).astype(np.int8),
    )


class AddedScores:
    """All added scores of a log, as they were when it was opened."""

    def __init__(self, directory: Path) -> None:
        files = score_files(directory) if (directory / "scores").is_dir() else []
        self._files: Mapping[str, list[ScoreFile]] = {
            name: [file for file in files if file.name == name] for name in (score_names(directory) if files else ())
        }

    @property
    def names(self) -> list[str]:
        """Under which there are any."""
        return list(self._files)

    def column(self, name: str, writer: str, ordinals: Ints, lengths: Ints) -> Floats:
        """(c,) the rewards under a name, NaN where there is none; see `join`."""
        if not len(ordinals):
            return np.empty(0)
        # A file goes when all of its records are erased.
        files = overlapping(self._files.get(name, ()), writer, int(ordinals.min()), int(ordinals.max()))
        return join([file for file in files if file.path.exists()], ordinals, lengths)[0]

    def joined(self, writer: str, record: Record) -> Record:
        """The record with its added scores among the `rewards` of its candidates."""
        added = {name: self._of(name, writer, record) for name in self._files}
        candidates = []
        for index, candidate in enumerate(record.candidates):
            more = {name: float(rewards[index]) for name, rewards in added.items() if np.isfinite(rewards[index])}
            candidates.append(replace(candidate, rewards={**candidate.rewards, **more}) if more else candidate)
        return replace(record, candidates=tuple(candidates))

    def _of(self, name: str, writer: str, record: Record) -> Floats:
        return self.column(name, writer, np.array([record.ordinal or 0]), np.array([len(record.candidates)]))

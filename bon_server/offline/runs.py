"""The shuffle: rows of fixed width in files, partition after partition, so that a partition of many files is read fast.

    (partitions + 1,) int64     where each partition begins, in rows
    rows                        partition after partition

Files appear whole, so that what is there after a crash can be used.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bon_server.log.whole_file import whole_file
from bon_server.offline.rows import Rows, empty


def write_runs(path: Path, rows: Rows, partition: NDArray[np.int64], partitions: int) -> None:
    """partition: (m,) which partition, from 0, each row belongs to. Rows of a partition keep their order."""
    order = np.argsort(partition, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(partition, minlength=partitions))]).astype(np.int64)
    with whole_file(path) as file:
        file.write(starts.tobytes())
        file.write(rows[order].tobytes())


def read_runs(paths: Iterable[Path], of: np.dtype[Any], partitions: int, first: int, last: int) -> Rows:
    """The rows of the partitions first, first + 1, …, last of all files."""
    pieces = [empty(of)]
    for path in paths:
        with path.open("rb") as file:
            file.seek(8 * first)
            starts = np.frombuffer(file.read(8 * (last - first + 2)), np.int64)
            file.seek(8 * (partitions + 1) + int(starts[0]) * of.itemsize)
            pieces.append(np.frombuffer(file.read(int(starts[-1] - starts[0]) * of.itemsize), of))
    return np.concatenate(pieces)

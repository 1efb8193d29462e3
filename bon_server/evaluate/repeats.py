"""Requests that were answered in several logs: of each, only the earliest answer counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bon_server.log.reader import LogReader
from bon_server.types import Outcome


@dataclass(slots=True)
class Repeats:
    """Which answers were given again elsewhere."""

    requests: NDArray[np.uint64]
    """(r,) rising identities of the requests with several answers."""
    earliest_us: NDArray[np.int64]
    """(r,) when the earliest answer of each began."""
    taken: NDArray[np.bool_]
    """(r,) whether it was kept already; a copied log has it twice with one time."""

    def keeps(self, batch: Any) -> NDArray[np.bool_]:
        """(m,) whether a request of the next batch counts; those that were not answered do."""
        keeps = np.ones(batch.num_rows, dtype=np.bool_)
        if not len(self.requests):
            return keeps
        requests, times = _answers(batch)
        place = np.minimum(np.searchsorted(self.requests, requests), len(self.requests) - 1)
        for row in np.flatnonzero((self.requests[place] == requests) & _answered(batch)).tolist():
            of = place[row]
            keeps[row] = times[row] == self.earliest_us[of] and not self.taken[of]
            self.taken[of] |= keeps[row]
        return keeps


def repeats_in(readers: Sequence[LogReader]) -> Repeats:
    """Reads ids and times of all logs, and holds 16 bytes for each answer."""
    requests: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    times: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    for reader in readers:
        for batch in reader.batches(["request_id", "principal", "created_at", "outcome"]):
            answered = _answered(batch)
            asked, began = _answers(batch)
            requests.append(asked[answered])
            times.append(began[answered])
    request, time = np.concatenate(requests), np.concatenate(times)
    order = np.lexsort((time, request))
    request, time = request[order], time[order]
    again = np.zeros(len(request), dtype=np.bool_)
    again[:-1] = request[1:] == request[:-1]
    first = again.copy()
    first[1:] &= ~again[:-1]
    return Repeats(request[first], time[first], np.zeros(int(first.sum()), dtype=np.bool_))


def _answers(batch: Any) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(m,) who asked what, as one number, and when, in microseconds."""
    pairs = zip(batch.column("principal").to_pylist(), batch.column("request_id").to_pylist(), strict=True)
    numbers = [
        int.from_bytes(blake2b(f"{principal or ''}\0{request}".encode(), digest_size=8).digest())
        for principal, request in pairs
    ]
    return np.array(numbers, dtype=np.uint64), _microseconds(batch.column("created_at"))


def _microseconds(times: Any) -> NDArray[np.int64]:
    return np.asarray(times.cast(pa.int64()).to_numpy(zero_copy_only=False), dtype=np.int64)


def _answered(batch: Any) -> NDArray[np.bool_]:
    wanted = pa.array([str(Outcome.OK), str(Outcome.PARTIAL)])
    return np.asarray(pc.is_in(batch.column("outcome"), wanted).to_numpy(zero_copy_only=False), dtype=np.bool_)

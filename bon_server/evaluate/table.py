"""Requests and candidates as numpy columns: what every evaluation works on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Table:
    """m requests with their c candidates, those of a request together and in index order."""

    prompt: NDArray[np.uint64]
    """(m,) identity of the prompt, spread over 64 bits."""
    stopped: Bools
    """(m,) whether rewards had a say in which candidates there are; then they are no independent sample."""
    request: Ints
    """(c,) position of each candidate's request in this table, rising."""
    numbers: Mapping[str, Floats]
    """(c,) each, by name; NaN where a candidate has none."""
    columns: Mapping[str, NDArray[np.generic]]
    """(m,) each, by name."""

    def take(self, requests: Bools) -> Table:
        """Only these of the requests, (m,)."""
        if requests.all():
            return self
        candidates = requests[self.request]
        return Table(
            prompt=self.prompt[requests],
            stopped=self.stopped[requests],
            request=(np.cumsum(requests) - 1)[self.request[candidates]],
            numbers={name: numbers[candidates] for name, numbers in self.numbers.items()},
            columns={name: column[requests] for name, column in self.columns.items()},
        )


class Block(NamedTuple):
    """Requests of a table with equally many usable candidates."""

    requests: Ints
    """(m,) positions in the table."""
    candidates: Ints
    """(m, n) positions of their candidates, in index order."""


def blocks(table: Table, usable: Bools) -> Iterator[Block]:
    """Requests with their (c,) usable candidates, a block for each number of them; those without any are left out."""
    positions = np.flatnonzero(usable)
    counts = np.bincount(table.request[positions], minlength=len(table.prompt))
    first = np.cumsum(counts) - counts
    for n in np.unique(counts[counts > 0]).tolist():
        requests = np.flatnonzero(counts == n)
        yield Block(requests, positions[first[requests][:, None] + np.arange(n)])


def ascending(table: Table, numbers: Floats) -> Iterator[tuple[Ints, Floats]]:
    """Requests with equally many finite numbers, (m,) positions and (m, n) numbers, each row ascending.

    A table at a time is sorted, not a block: faster than `blocks`, but it does not tell whose the numbers are.
    numbers: (c,), NaN where a candidate has none.
    """
    for requests, rows in _by_size(table, numbers):
        ordered = np.sort(rows, axis=1)  # NaN comes last
        counts = np.count_nonzero(~np.isnan(ordered), axis=1)
        for n in np.unique(counts[counts > 0]).tolist():
            which = counts == n
            yield requests[which], ordered[which, :n]


def sums_of(table: Table, numbers: Floats) -> Floats:
    """(m,) sums over the candidates of each request."""
    sums = np.zeros(len(table.prompt))
    for requests, rows in _by_size(table, numbers):
        sums[requests] = rows.sum(axis=1)
    return sums


def _by_size(table: Table, numbers: Floats) -> Iterator[tuple[Ints, Floats]]:
    """Requests with equally many candidates, and the numbers of these."""
    sizes = np.bincount(table.request, minlength=len(table.prompt))
    first = np.cumsum(sizes) - sizes
    for size in np.unique(sizes[sizes > 0]).tolist():
        requests = np.flatnonzero(sizes == size)
        whole = len(requests) == len(sizes)
        yield requests, (numbers if whole else numbers[first[requests][:, None] + np.arange(size)]).reshape(-1, size)


def merged(tables: Sequence[Table]) -> Table:
    """Requests of one prompt as one, all of them stopped or none. Holds them all; columns are left out."""
    prompt = np.concatenate([table.prompt for table in tables])
    prompts, of_request = np.unique(prompt, return_inverse=True)
    offsets = np.cumsum([0, *(len(table.prompt) for table in tables)])
    request = np.concatenate(
        [of_request[table.request + offset] for table, offset in zip(tables, offsets, strict=False)]
    )
    order = np.argsort(request, kind="stable")
    return Table(
        prompt=prompts,
        stopped=np.full(len(prompts), tables[0].stopped[0]),
        request=request[order],
        numbers={name: np.concatenate([table.numbers[name] for table in tables])[order] for name in tables[0].numbers},
        columns={},
    )

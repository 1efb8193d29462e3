"""Sums over prompts, and intervals from resampling prompts.

Samples of one prompt go together, so what is resampled is prompts, not samples (the cluster bootstrap; Cameron, Gelbach
and Miller 2008, "Bootstrap-based improvements for inference with clustered errors"). Every figure is a function of
column totals, and one resample serves all columns, so that figures at every k, and of every arm, are paired.

The bootstrap needs one row of totals for each prompt. To keep memory flat there are at most `EXACT_CLUSTERS` of them:
beyond, prompts are put into groups by their identity, and whole groups are resampled. Groups of whole prompts
are as independent of each other as prompts are, and there are enough of them that the interval is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
EXACT_CLUSTERS = 10_000
GROUPS = 4_096
"""A power of two, so that smaller groupings are unions of larger ones."""
ENTRIES = 1 << 23
"""Of the table of totals, at most, once prompts are grouped: 64 MB."""
RESAMPLES = 2_000
_DRAWS_AT_ONCE = 1 << 21
_REPLICATES_AT_ONCE = 1 << 22


class ClusterSums:
    """A table (clusters, columns) of totals that is added to in batches. Columns can be appended at any time."""

    def __init__(self, columns: int) -> None:
        self._rows: dict[int, int] = {}
        self._groups = 0
        """0: a row for each prompt."""
        self._table = np.zeros((64, columns))

    @property
    def table(self) -> Floats:
        """(clusters, columns) totals; of clusters that were met."""
        return self._table if self._groups else self._table[: len(self._rows)]

    @property
    def grouped(self) -> bool:
        """Whether a row is a group of prompts rather than a prompt."""
        return self._groups > 0

    def widen(self, columns: int, parts: int = 1) -> None:
        """Makes each of so many equal parts of the columns at least so many columns wide; new ones are 0."""
        extra = columns - self._table.shape[1] // parts
        if extra > 0:
            if self._groups or len(self._rows) > _rows_for(parts * columns):  # first: padded it may not fit memory
                self._group(_groups_for(parts * columns))
            apart = self._table.reshape(len(self._table), parts, -1)
            self._table = np.pad(apart, ((0, 0), (0, 0), (0, extra))).reshape(len(apart), -1)

    def add(
        self,
        clusters: NDArray[np.uint64],
        columns: slice,
        sums: Floats,
        linear: Callable[[Floats], Floats] = np.asarray,
    ) -> None:
        """Adds `linear` of (m, w) to as many columns of the rows of (m,) clusters, numbers spread over 64 bits.

        linear: a linear map of rows; it is given the sums of each cluster, which are fewer.
        """
        if not len(clusters):
            return
        rows = self._rows_of(clusters)
        met = np.flatnonzero(np.bincount(rows, minlength=len(self._table)))
        self._table[met, columns] += linear(_totals(rows, met, sums))

    def _rows_of(self, clusters: NDArray[np.uint64]) -> Ints:
        if not self._groups:
            known = self._rows
            keys, which = np.unique(clusters, return_inverse=True)
            rows = [known.setdefault(key, len(known)) for key in keys.tolist()]
            if len(known) <= _rows_for(self._table.shape[1]):
                if len(known) > len(self._table):
                    self._table = np.pad(self._table, ((0, 2 * len(known) - len(self._table)), (0, 0)))
                return np.array(rows, dtype=np.int64)[which]
            self._group(_groups_for(self._table.shape[1]))
        return (clusters % np.uint64(self._groups)).astype(np.int64)

    def _group(self, groups: int) -> None:
        if groups == self._groups:
            return
        keys = np.arange(self._groups) if self._groups else np.array(list(self._rows), dtype=np.uint64)
        before = self._table[: len(keys)]
        rows = (keys[: len(before)].astype(np.uint64) % np.uint64(groups)).astype(np.int64)
        self._table = np.zeros((groups, before.shape[1]))
        np.add.at(self._table, rows, before)
        self._groups, self._rows = groups, {}


def _totals(rows: Ints, met: Ints, sums: Floats) -> Floats:
    """(len(met), w) sums of the (m, w) whose row it is."""
    if len(met) == 1:
        return np.asarray(sums.sum(axis=0, keepdims=True), dtype=np.float64)
    place = np.empty(met[-1] + 1, dtype=np.int64)
    place[met] = np.arange(len(met))
    of_row = place[rows]
    return np.stack([np.bincount(of_row, column, len(met)) for column in sums.T], axis=1)


def _rows_for(columns: int) -> int:
    return min(EXACT_CLUSTERS, max(64, 4 * ENTRIES // columns))


def _groups_for(columns: int) -> int:
    groups = GROUPS
    while groups > 64 and groups * columns > ENTRIES:
        groups //= 2
    return groups


def bootstrap_totals(table: Floats, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """(resamples, columns) totals of resampled clusters, all columns of one resample from the same clusters.

    table: (clusters, columns).
    """
    blocks = [weights @ table for weights in _weights(len(table), resamples, np.random.default_rng(seed))]
    return np.concatenate(blocks) if blocks else np.zeros((0, table.shape[1]))


def _weights(clusters: int, resamples: int, random: np.random.Generator) -> Iterator[Floats]:
    """Blocks of (some, clusters): how many times each cluster is in a resample."""
    block = max(1, _DRAWS_AT_ONCE // max(clusters, 1))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = random.integers(clusters, size=(rows, clusters)) + clusters * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(np.float64)


def interval(replicates: Floats, clusters: int | Ints, level: float = 0.95) -> Floats:
    """(2, columns) expanded percentile interval; NaN where it is not defined.

    The plain percentile interval is too short with few clusters: its spread lacks the factor sqrt(G / (G - 1)) and it
    uses normal quantiles. The expanded one moves to the tail areas Phi(-sqrt(G / (G - 1)) t), t the quantile of
    Student's distribution with G - 1 degrees (Hesterberg 2015, "What teachers should know about the bootstrap").

    replicates: (resamples, columns); those that are not finite are left out. clusters: G, how many of those resampled
    have a part in each column, (columns,) or one for all; below 2 there is no interval.
    """
    result = np.full((2, replicates.shape[1]), np.nan)
    if not len(replicates):
        return result
    of_column = np.broadcast_to(np.asarray(clusters), replicates.shape[1])
    for count in np.unique(of_column[of_column > 1]).tolist():
        t = student_quantile(count - 1, (1 - level) / 2)
        tail = NormalDist().cdf(t * (count / (count - 1)) ** 0.5)
        columns = np.flatnonzero(of_column == count)
        whole = np.isfinite(replicates[:, columns]).all(axis=0)
        result[:, columns[whole]] = np.quantile(replicates[:, columns[whole]], [tail, 1 - tail], axis=0)
        for column in columns[~whole].tolist():
            finite = replicates[np.isfinite(replicates[:, column]), column]
            if len(finite):
                result[:, column] = np.quantile(finite, [tail, 1 - tail])
    return result


def student_quantile(degrees: int, area: float) -> float:
    """Quantile of Student's distribution.

    From 1,000 degrees on by its expansion in 1 / degrees (Abramowitz and Stegun 1964, 26.7.5), right to 1e-8 there:
    importing scipy takes as long as reading some 100,000 requests.
    """
    if degrees < 1_000:
        from scipy.special import stdtrit

        return float(stdtrit(degrees, area))
    z = NormalDist().inv_cdf(area)
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def ratios(numerators: Floats, denominators: Floats, seed: int = 0, analytic: bool = False) -> tuple[Floats, Floats]:
    """Returns (w,) ratios of totals and their (2, w) intervals, NaN where a total below is 0.

    numerators, denominators: (clusters, w); clusters without anything below are left out, and a column in which fewer
    than two have something has no interval. analytic: without resampling, see `_linearised`.
    """
    if analytic:
        return _linearised(numerators, denominators)
    met = np.any(denominators != 0, axis=1)
    above, below = numerators[met], denominators[met]
    width = above.shape[1]
    result, between = np.full(width, np.nan), np.full((2, width), np.nan)
    block = max(1, _REPLICATES_AT_ONCE // RESAMPLES)
    for start in range(0, width, block):
        part = slice(start, start + block)
        with np.errstate(divide="ignore", invalid="ignore"):
            result[part] = above[:, part].sum(axis=0) / below[:, part].sum(axis=0)
            totals = bootstrap_totals(np.concatenate([above[:, part], below[:, part]], axis=1), seed=seed)
            size = totals.shape[1] // 2
            shares = np.count_nonzero(below[:, part], axis=0)
            between[:, part] = interval(totals[:, :size] / totals[:, size:], shares)
    return result, between


def _linearised(numerators: Floats, denominators: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """As `ratios`, with the standard error of a ratio of means of clusters to first order, and Student's quantile.

    Cochran 1977, "Sampling techniques", section 6.4: the residuals u - r v of the clusters are summed in squares. For
    tables of groups of many prompts, whose totals are near normal.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        below = denominators.sum(axis=0)
        ratio = numerators.sum(axis=0) / below
        clusters = np.count_nonzero(denominators, axis=0)
        squares = ((numerators - ratio * denominators) ** 2).sum(axis=0)
        error = np.sqrt(squares * clusters / (clusters - 1)) / np.abs(below)
    half = np.full(len(ratio), np.nan)
    for count in np.unique(clusters[clusters > 1]).tolist():
        half[clusters == count] = student_quantile(count - 1, (1 + level) / 2) * error[clusters == count]
    return ratio, np.stack([ratio - half, ratio + half])


def figures(table: Floats, function: Callable[[Floats], Floats], seed: int = 0) -> tuple[Floats, Floats]:
    """Returns (w,) figures and their (2, w) intervals, for a function from (…, columns) totals to (…, w) figures."""
    met = table[np.any(table != 0, axis=1)]
    with np.errstate(divide="ignore", invalid="ignore"):
        value = function(table.sum(axis=0)[None])[0]
        return value, interval(function(bootstrap_totals(met, seed=seed)), len(met))

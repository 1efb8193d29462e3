"""Means over questions with 95 % intervals, all from the same resamples of questions: differences are paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bon_server.estimators.clusters import ratios

Floats = NDArray[np.float64]
Figure = dict[str, Any]


def figures(columns: Mapping[str, Floats]) -> dict[str, Figure]:
    """`{"value", "ci95"}` of each column of (P,) numbers, one for each question; no interval with fewer than two.

    NaN stands for a question that was not measured.

    The bootstrap of `bon evaluate`. Training seeds are averaged before (`over_seeds`), so an interval is about other
    questions of this kind, and says nothing about other seeds: these stand beside it one by one.
    """
    table = np.stack(list(columns.values()), axis=1)
    known = np.isfinite(table)
    values, between = ratios(np.where(known, table, 0.0), known.astype(np.float64))
    return {
        name: {
            "value": round(float(values[index]), 4),
            "ci95": _rounded(between[:, index]),
        }
        for index, name in enumerate(columns)
    }


def over_seeds(rows: Sequence[Floats]) -> Floats:
    """(P,) mean over seeds of (P, n) answers, or of (P,) numbers."""
    return np.asarray(np.mean([row.reshape(len(row), -1).mean(axis=1) for row in rows], axis=0))


def _rounded(bounds: Floats) -> list[float] | None:
    return [round(float(bound), 4) for bound in bounds] if np.isfinite(bounds).all() else None

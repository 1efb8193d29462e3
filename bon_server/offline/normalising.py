"""Before the first stage, with `normalise`: mean and standard deviation of the rewards of each reward model.

Sums are exact and rounded once, at the end, so that they do not depend on the order in which rewards are read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bon_server.errors import LogError
from bon_server.offline.eligible import exact_name
from bon_server.offline.gathering import batches, columns_for, judge
from bon_server.offline.plan import Plan

Floats = NDArray[np.float64]
UNIT = 1 << 1126
"""Exact sums are whole numbers of 1/UNIT: the last bit of the smallest double."""
_HALF_BITS = 27


def measure(plan: Plan, task: int) -> dict[str, Any]:
    """Of some files: how many rewards each model gave to candidates that may be chosen, their sum, that of squares."""
    counts: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    squares: Counter[str] = Counter()
    for number in range(*plan.tasks[task]):
        file = plan.files[number]
        for batch in batches(plan, file, columns_for(plan), []):
            judged = judge(plan, file, batch, [])
            rewards = judged.candidates.reward[judged.can]
            of = judged.models.of[judged.candidates.row[judged.can]]
            for code, refs in enumerate(judged.models.refs):
                some = rewards[of == code]
                name = exact_name(refs)
                counts[name] += len(some)
                sums[name] += exact_sum(some)
                squares[name] += exact_sum_of_squares(some)
    return {name: [counts[name], sums[name], squares[name]] for name in counts}


def scales(measured: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, float, float], ...]:
    """Name, mean and standard deviation (of the whole, not of a sample) of each model."""
    totals: dict[str, list[int]] = {}
    for summary in measured:
        for name, values in summary.items():
            before = totals.get(name, [0, 0, 0])
            totals[name] = [one + other for one, other in zip(before, values, strict=True)]
    found = []
    for name, (count, total, square) in sorted(totals.items()):
        if count:
            mean = Fraction(total, count * UNIT)
            variance = Fraction(square, count * UNIT) - mean * mean
            found.append((name, float(mean), math.sqrt(variance)))
    return tuple(found)


def exact_sum(values: Floats) -> int:
    """Sum of finite doubles, in 1/UNIT."""
    mantissas, exponents = np.frexp(values)
    whole = np.ldexp(mantissas, 53).astype(np.int64)
    found, of = np.unique(exponents, return_inverse=True)
    # Halves of mantissas add up exactly as doubles, up to 2**26 of them.
    high = np.bincount(of, weights=(whole >> _HALF_BITS).astype(np.float64))
    low = np.bincount(of, weights=(whole & ((1 << _HALF_BITS) - 1)).astype(np.float64))
    shift = UNIT.bit_length() - 1 - 53
    return sum(
        ((int(above) << _HALF_BITS) + int(below)) << (exponent + shift)
        for exponent, above, below in zip(found.tolist(), high.tolist(), low.tolist(), strict=True)
    )


def exact_sum_of_squares(values: Floats) -> int:
    """Sum of the squares of finite doubles, in 1/UNIT. Raises `LogError` for rewards too large to be squared."""
    if len(values) and np.abs(values).max() > 1e150:
        raise LogError("rewards above 1e150 cannot be normalised")
    mantissas, exponents = np.frexp(values)
    high = np.ldexp(np.rint(np.ldexp(mantissas, 26)), exponents - 26)
    low = values - high
    # Products of halves are exact, which squares are not.
    return exact_sum(high * high) + 2 * exact_sum(high * low) + exact_sum(low * low)

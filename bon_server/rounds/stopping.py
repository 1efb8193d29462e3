"""When rounds go no further, and which round is kept: pure functions of the figures of each round.

Three things end it, looked at in this order:

    diversity   distinct-n or entropy of the held-out samples is below its share of the first policy's
    fell        the held-out reward is below the best before by more than the 95 % interval of their paired difference
    patience    so many rounds in a row without a new best
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bon_server.rounds.options import Stops


@dataclass(frozen=True, slots=True)
class Point:
    """What one round came to, on held-out prompts; the first is the policy that the rounds began with."""

    reward: float
    """Mean of the samples."""
    below_best: bool = False
    """Whether it is below the best round before by more than the interval of the difference."""
    variety: Mapping[str, float] = field(default_factory=dict)
    """distinct_1, distinct_2, distinct_3 and entropy_nats, as far as they are known."""


def tripped(points: Sequence[Point], number: int, stops: Stops) -> str | None:
    """Which figure of a round's diversity is too low, in words; None: none is."""
    for name, there in points[number].variety.items():
        share = stops.min_entropy if name == "entropy_nats" else stops.min_distinct
        least = share * points[0].variety.get(name, math.nan)
        if there < least:
            return f"{name} fell to {there:.3g}, below {share:g} of the first policy's {points[0].variety[name]:.3g}"
    return None


def best_round(points: Sequence[Point], stops: Stops) -> int:
    """The round with the highest reward of those that are varied enough; of equals the earliest."""
    varied = [number for number in range(len(points)) if tripped(points, number, stops) is None]
    return max(varied, key=lambda number: (points[number].reward, -number))


def why_stop(points: Sequence[Point], stops: Stops) -> str | None:
    """Why the last of these rounds ends it, in words; None: go on."""
    last = len(points) - 1
    if last == 0:
        return None
    too_low = tripped(points, last, stops)
    if too_low is not None:
        return f"diversity: {too_low}"
    if points[last].below_best:
        before = best_round(points[:-1], stops)
        return f"fell: the held-out reward fell to {points[last].reward:.4g} from {points[before].reward:.4g}"
    best = best_round(points, stops)
    if last - best >= stops.patience:
        return f"patience: {last - best} rounds without a held-out reward above {points[best].reward:.4g}"
    return None

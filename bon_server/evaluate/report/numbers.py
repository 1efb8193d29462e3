"""Figures as they are printed: as many digits as their interval bears, and a minus sign that is one."""

from __future__ import annotations

import math
from collections.abc import Sequence

MOST_DECIMALS = 6


def number(value: float | None, around: Sequence[float] | None = None) -> str:
    """A figure by itself; with an interval around it, as many decimals as that bears, else three digits."""
    if value is None:
        return "–"
    decimals = _decimals(around)
    return with_minus(f"{value:.3g}" if decimals is None else f"{value:,.{decimals}f}")


def interval(around: Sequence[float] | None) -> str:
    """`[low, high]`, never broken over two lines; empty when there is none."""
    return "" if around is None else "[" + ",\u00a0".join(number(bound, around) for bound in around) + "]"


def with_interval(value: float | None, around: Sequence[float] | None) -> str:
    """`figure [low, high]`."""
    return f"{number(value, around)} {interval(around)}".strip()


def share(value: float | None, around: Sequence[float] | None) -> str:
    """A share and its interval in per cent."""
    if value is None:
        return "–"
    low_high = "" if around is None else " [" + ",\u00a0".join(f"{100 * bound:.1f}" for bound in around) + "]"
    return f"{100 * value:.1f} %{low_high}"


def _decimals(around: Sequence[float] | None) -> int | None:
    """One digit of half the width of an interval, two where the first is small (the rule of the Particle Data Group).

    None: there is no interval, or nothing between its bounds, or it needs more decimals than anybody reads.
    """
    half = 0.0 if around is None else (around[1] - around[0]) / 2
    if not 0 < half < math.inf:
        return None
    exponent = math.floor(math.log10(half))
    decimals = max(0, -exponent + (half / 10.0**exponent < 3.55))
    return decimals if decimals <= MOST_DECIMALS else None


def with_minus(text: str) -> str:
    """A number's text with a minus sign instead of a hyphen."""
    return text.replace("-", "−")

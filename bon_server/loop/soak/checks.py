"""What was seen against what is promised, each with its figure and its limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bon_server.log.verify.verify import Report
from bon_server.loop.soak.ledger import Differences, Ledger

JUDGED_MINUTES = 5.0
"""A slope over less says nothing: an allocator that fills its pools looks like a leak."""
SPARE_DESCRIPTORS, SPARE_THREADS = 8, 16
"""Pools of threads and connections have bounds, but fill when they are first needed, which may be late in the run."""
SHOWN = 5


@dataclass(frozen=True)
class Check:
    """One promise."""

    name: str
    passed: bool | None
    """None: it was not judged; `detail` says why."""
    figure: float | None
    limit: str
    detail: str = ""


@dataclass(frozen=True)
class TrendLine:
    """A straight line through points."""

    slope: float
    standard_error: float
    """Of the slope, as if errors were independent. Those of memory are not: take it for the least it can be."""


def fit_line(x: Sequence[float], y: Sequence[float]) -> TrendLine:
    """Ordinary least squares. x, y: (n,), n at least 3, not all x equal."""
    centred = np.asarray(x) - np.mean(x)
    spread = float(centred @ centred)
    slope = float(centred @ np.asarray(y)) / spread
    residuals = np.asarray(y) - np.mean(y) - slope * centred
    return TrendLine(slope, float(np.sqrt(residuals @ residuals / (len(x) - 2) / spread)))


def memory(samples: Sequence[tuple[float, int]], limit_mb_per_min: float) -> Check:
    """samples: seconds and resident bytes, from after the warm-up on."""
    limit = f"at most {limit_mb_per_min:g} MB/min"
    if len(samples) < 3:
        return left_out("memory", limit, f"{len(samples)} samples are no line")
    minutes = [seconds / 60 for seconds, _ in samples]
    line = fit_line(minutes, [rss / 1e6 for _, rss in samples])
    seen = f"standard error {line.standard_error:.3f}; {samples[0][1] / 1e6:.1f} to {samples[-1][1] / 1e6:.1f} MB"
    if minutes[-1] - minutes[0] < JUDGED_MINUTES:
        return Check("memory", None, line.slope, limit, f"{seen}; not judged under {JUDGED_MINUTES:g} minutes")
    return Check("memory", line.slope <= limit_mb_per_min, line.slope, limit, seen)


def flat(name: str, before: int, after: int, spare: int) -> Check:
    """Held at rest after the warm-up, and at rest at the end."""
    return Check(name, after - before <= spare, after - before, f"at most {spare:+d}", f"{before} to {after}")


def at_zero(name: str, held: int) -> Check:
    """Nothing of it is left at rest."""
    return Check(name, held == 0, held, "0")


def codes(seen: Mapping[str, Counter[str]], promised: Mapping[str, frozenset[str]]) -> Check:
    """How calls ended, by what they were. What counts is what was not promised: UNKNOWN and INTERNAL never are."""
    broken = {
        f"{kind} {code}": count
        for kind, ended in seen.items()
        for code, count in ended.items()
        if code not in promised.get(kind, frozenset())
    }
    return Check("codes", not broken, sum(broken.values()), "0 not promised", _shown(broken))


def answers(ledger: Ledger) -> list[Check]:
    """What callers saw themselves."""
    twice = ledger.contradictions
    return [
        Check("acknowledged", bool(ledger.acknowledged), len(ledger.acknowledged), "at least 1"),
        Check("same answer again", not twice, len(twice), "0 different", _shown(twice)),
    ]


def log_complete(differences: Differences) -> list[Check]:
    """What the log says of what callers were told."""
    lists = {
        "missing from the log": differences.missing,
        "other winner in the log": differences.changed,
        "twice in the log": differences.doubled,
        "feedback missing from the log": differences.feedback_missing,
        "feedback twice in the log": differences.feedback_doubled,
    }
    return [Check(name, not ids, len(ids), "0", _shown(ids)) for name, ids in lists.items()]


def log_verified(report: Report) -> Check:
    """What `bon log verify` finds."""
    kinds = Counter(problem["kind"] for problem in report["problems"])
    return Check("log verify", report["ok"], kinds.total() + report["unlisted"], "0 problems", _shown(kinds))


def left_out(name: str, limit: str, why: str) -> Check:
    """What could not be looked at."""
    return Check(name, None, None, limit, why)


def _shown(found: Sequence[str] | Mapping[str, int]) -> str:
    words = [f"{name}: {count}" for name, count in found.items()] if isinstance(found, Mapping) else list(found)
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more

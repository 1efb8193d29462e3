"""`bon evaluate compare A B`: two logs on the prompts they share, paired.

Requests of one prompt count as one, in each log. Every number of both logs is held in memory: some tens of bytes a
candidate.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bon_server.core.errors import LogError
from bon_server.estimators.clusters import ClusterSums, Floats, ratios
from bon_server.estimators.order_statistics import reward_at_k
from bon_server.evaluate.curve_sums import CurveOptions
from bon_server.evaluate.reading import ReadCounts, tables
from bon_server.evaluate.table import Table


class _Side(NamedTuple):
    """Candidates of each prompt, in one log."""

    prompts: NDArray[np.uint64]
    """(p,) rising."""
    ranks: list[Floats]
    values: list[Floats]
    """Of the same candidates; NaN where there is none."""


def compare(options: CurveOptions, a: Path, b: Path) -> dict[str, Any]:
    """The document of `bon evaluate compare --json`: B less A at every k, and how often B's answer beats a sample of A.

    The judge of the win rate is the value where one is asked for, else the rank.

    Raises:
        LogError: a log cannot be read, the two have rewards of different models, or no prompt in common.
    """
    seen = ReadCounts()
    first, second = (_side(options, log, seen) for log in (a, b))
    shared, in_a, in_b = np.intersect1d(first.prompts, second.prompts, return_indices=True)
    if not len(shared):
        raise LogError(f"{a} and {b} have no prompt in common: {len(first.prompts)} and {len(second.prompts)} prompts")
    pairs = [
        _figures((first.ranks[i], first.values[i]), (second.ranks[j], second.values[j]), options.value is not None)
        for i, j in zip(in_a.tolist(), in_b.tolist(), strict=True)
    ]
    return {
        "a": str(a),
        "b": str(b),
        "prompts": len(shared),
        "only_a": len(first.prompts) - len(shared),
        "only_b": len(second.prompts) - len(shared),
        "rank_by": options.rank_by,
        "value": options.value,
        "reward_models": sorted(seen.reward_models),
        "left_out": dict(sorted((+seen.left_out).items())),
        "curve": _rows(shared, pairs, options),
    }


def _side(options: CurveOptions, log: Path, seen: ReadCounts) -> _Side:
    source = replace(options.source, logs=(log,), merge=True)
    numbers = [options.rank_by, *([] if options.value is None else [options.value])]
    if options.drop_truncated:
        numbers.append("truncated")
    side = _Side(np.empty(0, np.uint64), [], [])
    for table in tables(source, numbers, seen):  # merged: one table of stopped requests and one of the others
        if table.stopped.any():
            seen.left_out["stopped"] += len(table.prompt)
        else:
            side = _split(table, options)
    return side


def _split(table: Table, options: CurveOptions) -> _Side:
    ranks = table.numbers[options.rank_by]
    usable = np.isfinite(ranks)
    if options.drop_truncated:
        usable &= table.numbers["truncated"] != 1.0
    request = table.request[usable]
    values = (ranks if options.value is None else table.numbers[options.value])[usable]
    present, starts = np.unique(request, return_index=True)
    return _Side(
        table.prompt[present],
        np.split(ranks[usable], starts[1:]) if len(starts) else [],
        np.split(values, starts[1:]) if len(starts) else [],
    )


def _figures(a: tuple[Floats, Floats], b: tuple[Floats, Floats], with_value: bool) -> Floats:
    """(k, 5) of one prompt: rewards of A and B, values of A and B, win rate, at each k that both have; NaN: unknown."""
    size = min(len(a[0]), len(b[0]))
    ks = np.arange(1, size + 1)
    result = np.full((size, 5), np.nan)
    result[:, 0], result[:, 1] = reward_at_k(a[0], None, ks)[0], reward_at_k(b[0], None, ks)[0]
    valued = all(np.isfinite(values).all() for _, values in (a, b))
    if with_value and valued:
        result[:, 2], result[:, 3] = reward_at_k(*a, ks)[0], reward_at_k(*b, ks)[0]
    if valued:
        theirs = np.sort(a[1])
        beaten = np.searchsorted(theirs, b[1], "left") + np.searchsorted(theirs, b[1], "right")
        result[:, 4] = reward_at_k(b[0], beaten / (2 * len(theirs)), ks)[0]
    return result


def _rows(shared: NDArray[np.uint64], pairs: list[Floats], options: CurveOptions) -> list[dict[str, Any]]:
    size = max(map(len, pairs))
    sums = ClusterSums(10 * size)
    for prompt, pair in zip(shared, pairs, strict=True):
        known = np.isfinite(pair)
        columns = np.concatenate([np.where(known, pair, 0.0), known], axis=1).ravel()
        sums.add(np.array([prompt]), slice(0, len(columns)), columns[None])
    by_k = sums.table.reshape(-1, size, 10)
    above = np.concatenate([by_k[..., :5], by_k[..., 1:4:2] - by_k[..., 0:3:2]], axis=2)
    below = np.concatenate([by_k[..., 5:], by_k[..., 5:8:2]], axis=2)
    flat = above.reshape(len(above), -1), below.reshape(len(below), -1)
    means, between = ratios(*flat, options.seed, sums.grouped)
    counts = by_k.sum(axis=0)
    return [
        _row(k, int(counts[k - 1, 5]), means.reshape(size, 7)[k - 1], between.reshape(2, size, 7)[:, k - 1], options)
        for k in range(1, size + 1)
    ]


def _row(k: int, prompts: int, means: Floats, between: Floats, options: CurveOptions) -> dict[str, Any]:
    def figure(name: str, column: int) -> dict[str, Any]:
        value, bounds = float(means[column]), between[:, column]
        return {
            name: value if np.isfinite(value) else None,
            f"{name}_ci": [float(bound) for bound in bounds] if np.isfinite(bounds).all() else None,
        }

    row = {"k": k, "prompts": prompts, **figure("a", 0), **figure("b", 1), **figure("difference", 5)}
    if options.value is not None:
        row |= {**figure("value_a", 2), **figure("value_b", 3), **figure("value_difference", 6)}
    return row | figure("win_rate", 4)

"""`bon evaluate headroom`: is there anything to gain from choosing, does the reward find it, and at what price?

One pass for what is said of single requests, one for the curve over k. Stopped requests are left out where there are
others, as in the curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bon_server.estimators.clusters import ClusterSums, Floats, figures, ratios
from bon_server.evaluate.curve import curve
from bon_server.evaluate.curve_sums import CurveOptions
from bon_server.evaluate.reading import ReadCounts, tables
from bon_server.evaluate.table import Block, Table, blocks

NUMBERS = ("tokens", "length", "truncated", "duplicate")
_FIGURES = (
    # name, the total above, the total below
    ("prompts_with_spread", "spread", "several"),
    ("prompts_tied_for_best", "tied_for_best", "several"),
    ("tied_pairs", "tied", "pairs"),
    ("best_over_mean_reward", "best_over_mean", "several"),
    ("duplicates", "duplicate", "compared"),
    ("truncated", "truncated", "finished"),
    ("winners_truncated", "winner_truncated", "winners"),
    ("value_of_chosen", "chosen", "valued"),
    ("value_of_random", "mean", "valued"),
    ("value_of_oracle", "oracle", "valued"),
    ("oracle_gap", "gap", "valued"),
    ("prompts_where_it_matters", "matters", "valued"),
    ("right_where_it_matters", "right", "matters"),
    ("random_right_where_it_matters", "random_right", "matters"),
    ("pair_accuracy", "pairs_won", "pairs_apart"),
)
_CORRELATION = ("length_cross", "length_squares", "reward_squares")
_TOTALS = tuple(dict.fromkeys([total for _, *both in _FIGURES for total in both])) + _CORRELATION
_AT = {name: position for position, name in enumerate(_TOTALS)}
_EPOCH_MONDAY = date(1969, 12, 29)
_WEEK_US = 7 * 86_400 * 1_000_000
_OFFSET_US = 3 * 86_400 * 1_000_000
"""From the Monday to the start of the epoch, a Thursday."""


@dataclass(slots=True)
class _Week:
    requests: int = 0
    candidates: int = 0
    reward: float = 0.0
    squares: float = 0.0


def headroom(options: CurveOptions, price_per_1000_tokens: float | None = None) -> dict[str, Any]:
    """The document of `bon evaluate headroom --json`.

    Every figure is {"value", "ci"}, a mean or share over requests, null where nothing can be said.
    price_per_1000_tokens: in units of reward; the answer then says at which n reward less price is highest.

    Raises as `curve` does.
    """
    at_k = curve(options)
    stopped = at_k["sample"] == "stopped"
    sums, weeks = ClusterSums(len(_TOTALS)), dict[int, _Week]()
    for table in tables(
        replace(options.source, on_records=lambda records: None), _numbers(options), ReadCounts(), _columns(options)
    ):
        kept = table.take(table.stopped == stopped)
        _add(sums, kept, options)
        _add_weeks(weeks, kept, options.rank_by)
    return {
        **{
            name: at_k[name]
            for name in ("prompts", "rank_by", "value", "sample", "reward_models", "counts", "warnings")
        },
        **_summary(sums, options),
        "weeks": [_week(number, weeks[number]) for number in sorted(weeks)],
        "which_n": _which_n(at_k["curve"], price_per_1000_tokens),
    }


def _numbers(options: CurveOptions) -> Sequence[str]:
    return [options.rank_by, *NUMBERS, *([] if options.value is None else [options.value])]


def _columns(options: CurveOptions) -> Sequence[str]:
    return () if options.source.merge else ("created_at",)


def _add(sums: ClusterSums, table: Table, options: CurveOptions) -> None:
    ranks = table.numbers[options.rank_by]
    usable = np.isfinite(ranks)
    if options.drop_truncated:
        usable &= table.numbers["truncated"] != 1.0
    for block in blocks(table, usable):
        totals = np.zeros((len(block.requests), len(_TOTALS)))
        some = ranks[block.candidates]
        _ties(totals, some)
        _texts(totals, some, block, table)
        _length(totals, some, table.numbers["length"][block.candidates])
        if options.value is not None:
            _value(totals, some, table.numbers[options.value][block.candidates])
        sums.add(table.prompt[block.requests], slice(0, len(_TOTALS)), totals)


def _put(totals: Floats, name: str, values: Any) -> None:
    totals[:, _AT[name]] = values


def _ties(totals: Floats, ranks: Floats) -> None:
    n = ranks.shape[1]
    ordered = np.sort(ranks, axis=1)
    if n < 2:
        return
    same = ordered[:, 1:] == ordered[:, :-1]
    _put(totals, "several", 1)
    _put(totals, "spread", ~same.all(axis=1))
    _put(totals, "tied_for_best", same[:, -1])
    _put(totals, "best_over_mean", ordered[:, -1] - ordered.mean(axis=1))
    _put(totals, "pairs", n * (n - 1) / 2)
    run = np.zeros(len(ranks))
    for position in range(n - 1):  # the j-th of a run of equals is tied with j before it
        run = np.where(same[:, position], run + 1, 0)
        totals[:, _AT["tied"]] += run


def _texts(totals: Floats, ranks: Floats, block: Block, table: Table) -> None:
    duplicate = table.numbers["duplicate"][block.candidates]
    truncated = table.numbers["truncated"][block.candidates]
    _put(totals, "compared", np.isfinite(duplicate).sum(axis=1))
    _put(totals, "duplicate", np.nansum(duplicate, axis=1))
    _put(totals, "finished", np.isfinite(truncated).sum(axis=1))
    _put(totals, "truncated", np.nansum(truncated, axis=1))
    winner = truncated[np.arange(len(ranks)), ranks.argmax(axis=1)]
    _put(totals, "winners", np.isfinite(winner))
    _put(totals, "winner_truncated", np.nan_to_num(winner))


def _length(totals: Floats, ranks: Floats, length: Floats) -> None:
    known = np.isfinite(length).all(axis=1)
    from_mean = (length - length.mean(axis=1, keepdims=True))[known]
    ranks_from_mean = (ranks - ranks.mean(axis=1, keepdims=True))[known]
    totals[known, _AT["length_cross"]] = (from_mean * ranks_from_mean).sum(axis=1)
    totals[known, _AT["length_squares"]] = (from_mean**2).sum(axis=1)
    totals[known, _AT["reward_squares"]] = (ranks_from_mean**2).sum(axis=1)


def _value(totals: Floats, ranks: Floats, values: Floats) -> None:
    """Requests in which every candidate has a value."""
    known = np.isfinite(values).all(axis=1)
    by, of = ranks[known], values[known]
    chosen = by == by.max(axis=1, keepdims=True)
    best, lowest, mean = of.max(axis=1), of.min(axis=1), of.mean(axis=1)
    value_of_chosen = (of * chosen).sum(axis=1) / chosen.sum(axis=1)
    matters = best > lowest
    right = of == best[:, None]
    columns: dict[str, NDArray[Any]] = {
        "valued": np.ones(len(by)),
        "chosen": value_of_chosen,
        "mean": mean,
        "oracle": best,
        "gap": best - value_of_chosen,
        "matters": matters,
        "right": matters * (right & chosen).sum(axis=1) / chosen.sum(axis=1),
        "random_right": matters * right.mean(axis=1),
    }
    for name, column in columns.items():
        totals[known, _AT[name]] = column
    for position in range(by.shape[1]):  # pairs with the candidates before it
        apart = np.sign(of[:, [position]] - of[:, :position])
        agree = np.sign(by[:, [position]] - by[:, :position]) * apart
        totals[known, _AT["pairs_apart"]] += np.abs(apart).sum(axis=1)
        totals[known, _AT["pairs_won"]] += (np.abs(apart) * (agree + 1) / 2).sum(axis=1)


def _summary(sums: ClusterSums, options: CurveOptions) -> dict[str, Any]:
    above = [_AT[over] for _, over, _ in _FIGURES]
    below = [_AT[under] for _, _, under in _FIGURES]
    shares, around_shares = ratios(sums.table[:, above], sums.table[:, below], options.seed, sums.grouped)
    of_correlation = sums.table[:, [_AT[name] for name in _CORRELATION]]
    correlation, around_correlation = figures(of_correlation, _correlation, options.seed)
    values, between = np.append(shares, correlation), np.append(around_shares, around_correlation, axis=1)
    names = [*(name for name, _, _ in _FIGURES), "reward_length_correlation"]
    return {
        name: {
            "value": float(value) if np.isfinite(value) else None,
            "ci": [float(bound) for bound in bounds] if np.isfinite([value, *bounds]).all() else None,
        }
        for name, value, bounds in zip(names, values, between.T, strict=True)
    }


def _correlation(totals: Floats) -> Floats:
    """(…, 1) Pearson's, from (…, 3) sums of products and of squares."""
    return np.asarray(totals[:, :1] / np.sqrt(totals[:, 1:2] * totals[:, 2:]))


def _add_weeks(weeks: dict[int, _Week], table: Table, rank_by: str) -> None:
    if "created_at" not in table.columns:
        return
    numbers = (table.columns["created_at"].astype("datetime64[us]").astype(np.int64) + _OFFSET_US) // _WEEK_US
    for requests, candidates in blocks(table, np.isfinite(table.numbers[rank_by])):
        means = table.numbers[rank_by][candidates].mean(axis=1)
        for number in np.unique(numbers[requests]).tolist():
            of_week = means[numbers[requests] == number]
            week = weeks.setdefault(number, _Week())
            week.requests += len(of_week)
            week.candidates += len(of_week) * candidates.shape[1]
            week.reward += float(of_week.sum())
            week.squares += float((of_week**2).sum())


def _week(number: int, week: _Week) -> dict[str, Any]:
    mean = week.reward / week.requests
    variance = max(week.squares - week.requests * mean**2, 0.0) / max(week.requests - 1, 1)
    half = 1.96 * (variance / week.requests) ** 0.5
    return {
        "week_of": (_EPOCH_MONDAY + timedelta(weeks=number)).isoformat(),
        "requests": week.requests,
        "candidates": week.candidates,
        "mean_reward": mean,
        "mean_reward_ci": [mean - half, mean + half] if week.requests > 1 else None,
    }


def _which_n(rows: Sequence[dict[str, Any]], price: float | None) -> dict[str, Any]:
    """What each further sample gains, and what it costs.

    What n samples gain is the sum of the steps up to n: each is of the same requests before and after, while the
    rewards at two k are of different ones where requests differ in N.
    """
    measured = [row for row in rows if not row.get("extrapolated")]
    gained = list(accumulate(row["gain"] for row in measured))
    answer: dict[str, Any] = {
        "n_for_90_percent_of_gain": 1 + next(i for i, gain in enumerate(gained) if gain >= 0.9 * gained[-1])
    }
    of_value = list(accumulate(row["value_gain"] for row in measured if row.get("value_gain") is not None))
    if of_value:
        answer["n_with_highest_value"] = 1 + int(np.argmax(of_value))
    if price is not None:
        worth = [
            (gain - price * row["tokens"] / 1000, -row["k"])
            for gain, row in zip(gained, measured, strict=True)
            if row["tokens"] is not None
        ]
        answer["n_at_price"] = -max(worth)[1] if worth else None
    answer["steps"] = [_step(row) for row in measured[1:]]
    return answer


def _step(row: dict[str, Any]) -> dict[str, Any]:
    tokens = None if row["tokens"] is None else row["tokens"] / row["k"]
    return {
        "k": row["k"],
        "gain": row["gain"],
        "gain_ci": row["gain_ci"],
        "tokens": tokens,
        "gain_per_1000_tokens": None if tokens is None else 1000 * row["gain"] / tokens,
        **({"value_gain": row["value_gain"], "value_gain_ci": row["value_gain_ci"]} if "value_gain" in row else {}),
    }

"""`bon evaluate curve`: reward, another value, KL and tokens of the best of k, for every k there are samples for.

One pass, a batch at a time; what is kept is a table of sums (`estimators.clusters`). Each request is estimated on its
own N candidates with a rank, and figures at k are means over the requests with N >= k.

`fit_of_curve` fits the curves of Gao et al. 2022 to the log's own points: value of the best of k against sqrt(KL).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bon_server.estimators.clusters import Floats, bootstrap_totals, ratios
from bon_server.estimators.kl_best_of_n import kl_bound
from bon_server.estimators.overoptimisation import CurveForm, fit_gao
from bon_server.evaluate.curve_sums import (
    COUNTED,
    KL,
    LAST,
    REQUESTS,
    REWARD,
    TOKENS,
    VALUE,
    VALUE_LAST,
    VALUED,
    WINNER,
    WITH_LOGPROB,
    CurveOptions,
    KlMethod,
    Sample,
    SumsByK,
    extrapolated_ks,
    gains,
    gather,
    sums_by_k,
)

Ints = NDArray[np.int64]
MOST_POINTS = 64
_COLUMNS_AT_ONCE = 2_048


def curve(options: CurveOptions) -> dict[str, Any]:
    """The document of `bon evaluate curve --json`.

    Raises `ConfigError` for options that do not go together and `LogError` when a log cannot be read or has nothing to
    evaluate.
    """
    seen, sample, stopped = gather(options)
    sums = sums_by_k(sample)
    rows = _rows(sample, sums, options, stopped)
    return {
        "prompts": sample.requests,
        "rank_by": options.rank_by,
        "value": options.value,
        "sample": "stopped" if stopped else "independent",
        "reward_models": sorted(seen.reward_models),
        "scores": seen.scores,
        "merged": options.source.merge,
        "counts": {
            "requests": seen.requests,
            "candidates": seen.candidates,
            "ranked": sample.ranked,
            "left_out": dict(sorted((+seen.left_out).items())),
            "prompts_with_ties": sample.tied,
            "prompts_tied_for_best": sample.tied_for_best,
        },
        "intervals": _intervals(sample, options),
        "warnings": [_STOPPED] if stopped else [],
        "curve": rows,
        "fit": None if stopped or options.value is None else _fit(sample, sums, options, rows),
    }


def _fit(sample: Sample, sums: SumsByK, options: CurveOptions, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    kl = np.array([row["kl_nats"] if row["kl_nats"] is not None else np.nan for row in rows[: sample.largest_n]])
    by_k, with_n_from_k = sums
    gained = gains(by_k[..., VALUE], by_k[..., VALUE_LAST])
    return fit_of_curve(kl, gained, with_n_from_k[..., VALUED], options.seed)


def _intervals(sample: Sample, options: CurveOptions) -> str:
    if not options.intervals:
        return "none"
    return "95 %, " + ("from the spread of groups of prompts" if sample.sums.grouped else "bootstrap over prompts")


_STOPPED = (
    "every request ran with a budget or was stopped: rewards decided which candidates there are, so they are no"
    " independent sample; means are of what was scored, and no KL is valid but the bound log n"
)


def _rows(sample: Sample, sums: SumsByK, options: CurveOptions, stopped: bool) -> list[dict[str, Any]]:
    """One row for each k."""
    size = sample.largest_n
    by_k, with_n_from_k = sums
    method = options.kl_method or (KlMethod.EXACT_PLUGIN if sample.tied else KlMethod.BOUND)
    kl, kl_count = (WINNER, WITH_LOGPROB) if method is KlMethod.WINNER_PROBABILITY else (KL, REQUESTS)
    above = [
        by_k[..., REWARD],
        gains(by_k[..., REWARD], by_k[..., LAST]),
        by_k[..., VALUE],
        gains(by_k[..., VALUE], by_k[..., VALUE_LAST]),
        by_k[..., kl],
        with_n_from_k[..., TOKENS],
    ]
    counted = (REQUESTS, REQUESTS, VALUED, VALUED, kl_count, COUNTED)
    below = [with_n_from_k[..., count] for count in counted]
    analytic = sample.sums.grouped
    means, between = ratios(np.concatenate(above, axis=1), np.concatenate(below, axis=1), options.seed, analytic)
    counts = with_n_from_k.sum(axis=0)
    return [
        _row(
            k,
            counts[k - 1],
            means.reshape(6, size)[:, k - 1],
            between.reshape(2, 6, size)[:, :, k - 1],
            None if stopped else method,
            options,
        )
        for k in range(1, size + 1)
    ] + _extrapolated(sample, options, stopped)


def _row(
    k: int, counts: Floats, means: Floats, between: Floats, method: KlMethod | None, options: CurveOptions
) -> dict[str, Any]:
    reward, gain, value, value_gain, kl, tokens = map(_number, means)
    row: dict[str, Any] = {
        "k": k,
        "prompts": int(counts[REQUESTS]),
        "reward": reward,
        "reward_ci": _pair(between[:, 0]),
        "gain": gain,
        "gain_ci": _pair(between[:, 1]),
    }
    if options.value is not None:
        row |= {"value": value, "value_ci": _pair(between[:, 2]), "value_prompts": int(counts[VALUED])}
        row |= {"value_gain": value_gain, "value_gain_ci": _pair(between[:, 3])}
    if method is None:
        return row | _NO_KL | {"tokens": None if tokens is None else k * tokens}
    if method is KlMethod.BOUND:
        kl = kl_bound(k)
    return row | {
        "kl_nats": kl,
        "kl_ci": _pair(between[:, 4]) if method is not KlMethod.BOUND else None,
        "kl_bound_nats": kl_bound(k),
        "kl_method": None if kl is None else method.value,
        "tokens": None if tokens is None else k * tokens,
    }


_NO_KL = {"kl_nats": None, "kl_ci": None, "kl_bound_nats": None, "kl_method": None}


def _extrapolated(sample: Sample, options: CurveOptions, stopped: bool) -> list[dict[str, Any]]:
    if options.extrapolate is None:
        return []
    table = sample.beyond.table
    below = np.repeat(table[:, :1], table.shape[1] - 1, axis=1)
    means, between = ratios(table[:, 1:], below, options.seed, sample.beyond.grouped)
    return [
        {
            "k": k,
            "prompts": int(below[:, 0].sum()),
            "reward": float(means[index]),
            "reward_ci": _pair(between[:, index]),
            **_NO_KL,
            "kl_bound_nats": None if stopped else kl_bound(k),
            "tokens": None,
            "extrapolated": True,
        }
        for index, k in enumerate(extrapolated_ks(options.extrapolate))
        if k > sample.largest_n
    ]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _pair(bounds: Floats) -> list[float] | None:
    return [float(bound) for bound in bounds] if np.isfinite(bounds).all() else None


def fit_of_curve(kl_nats: Floats, gained: Floats, counts: Floats, seed: int) -> dict[str, Any] | None:
    """The fit with intervals from resampled prompts; None with fewer than three points apart from k = 1.

    kl_nats: (K,) at k = 1..K. gained, counts: (clusters, K) sums of what the k-th sample adds to the value and how many
    requests they are of. A gain over k = 1 adds these up, so that requests with fewer than k samples do not bend it.
    """
    ks = np.unique(np.geomspace(1, len(kl_nats), MOST_POINTS).round().astype(np.int64)) - 1
    at = kl_nats[ks]
    usable = np.isfinite(at) & (counts[:, ks].sum(axis=0) > 0)
    ks, at = ks[usable], at[usable]
    if len(np.unique(at[at > 0])) < 3 or len(counts) < 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.cumsum(gained.sum(axis=0) / counts.sum(axis=0))[ks]
        replicates = _replicates(gained, counts, ks, seed)
    fit = fit_gao(at, means, CurveForm.BEST_OF_N, replicates)
    turning = fit.turning_distance
    return {
        "form": "R(d) = d (alpha - beta d), d = sqrt(KL)",
        "alpha": fit.alpha,
        "alpha_ci": list(fit.alpha_ci),
        "beta": fit.beta,
        "beta_ci": list(fit.beta_ci),
        "turning_point": fit.turning_point,
        "turning_point_kl_nats": None if turning is None else turning**2,
    }


def _replicates(gained: Floats, counts: Floats, ks: Ints, seed: int) -> Floats:
    """(resamples, points) gains over k = 1 in the same resamples of prompts, some columns at a time."""
    parts, so_far = [], np.zeros((1, 1))
    for start in range(0, int(ks[-1]) + 1, _COLUMNS_AT_ONCE):
        part = slice(start, start + _COLUMNS_AT_ONCE)
        totals = bootstrap_totals(np.concatenate([gained[:, part], counts[:, part]], axis=1), seed=seed)
        size = totals.shape[1] // 2
        reached = so_far + np.cumsum(totals[:, :size] / totals[:, size:], axis=1)
        parts.append(reached[:, ks[(ks >= start) & (ks < start + size)] - start])
        so_far = reached[:, -1:]
    return np.concatenate(parts, axis=1)

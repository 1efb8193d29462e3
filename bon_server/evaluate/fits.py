"""The curve of Gao et al. 2022 through a log's own points: value of the best of k against sqrt(KL)."""

from __future__ import annotations

from typing import Any

import numpy as np

from bon_server.estimators.clusters import Floats, bootstrap_totals
from bon_server.estimators.overoptimisation import Form, fit_gao

MOST_POINTS = 64


def fit_of_curve(kl_nats: Floats, values: Floats, counts: Floats, seed: int) -> dict[str, Any] | None:
    """The fit with intervals from resampled prompts; None with fewer than three points apart from k = 1.

    kl_nats: (K,) at k = 1..K. values, counts: (clusters, K) sums of values at k and how many requests they are of.
    """
    ks = np.unique(np.geomspace(1, len(kl_nats), MOST_POINTS).round().astype(np.int64)) - 1
    at = kl_nats[ks]
    usable = np.isfinite(at) & (counts[:, ks].sum(axis=0) > 0)
    ks, at = ks[usable], at[usable]
    if len(np.unique(at[at > 0])) < 3 or len(counts) < 2:
        return None
    table = np.concatenate([values[:, ks], counts[:, ks]], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = _gains(table.sum(axis=0)[None])[0]
        replicates = _gains(bootstrap_totals(table, seed=seed))
    fit = fit_gao(at, means, Form.BEST_OF_N, replicates)
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


def _gains(totals: Floats) -> Floats:
    """(…, K) means less the first."""
    size = totals.shape[1] // 2
    means = totals[:, :size] / totals[:, size:]
    return means - means[:, :1]

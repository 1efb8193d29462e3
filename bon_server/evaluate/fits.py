"""The curve of Gao et al. 2022 through a log's own points: value of the best of k against sqrt(KL)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bon_server.estimators.clusters import Floats, bootstrap_totals
from bon_server.estimators.overoptimisation import Form, fit_gao

Ints = NDArray[np.int64]
MOST_POINTS = 64
_COLUMNS_AT_ONCE = 2_048


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

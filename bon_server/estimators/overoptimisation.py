"""Gao, Schulman and Hilton 2022, "Scaling laws for reward model overoptimization": gold reward against the distance
d = sqrt(KL) from the initial policy.

    best-of-n   R(d) = d (alpha - beta d)        turns at d = alpha / (2 beta)
    RL          R(d) = d (alpha - beta log d)    turns at d = exp(alpha / beta - 1)

R is the gain over the initial policy, so R(0) = 0. Both are linear in alpha and beta: least squares, no iteration. KL
is not a measure of optimisation across methods, as they say: compare the curves, not the distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bon_server.estimators.clusters import student_quantile

Floats = NDArray[np.float64]


class CurveForm(StrEnum):
    """Which of the two curves."""

    BEST_OF_N = "best-of-n"
    RL = "rl"


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted curve with 95 % intervals."""

    form: CurveForm
    alpha: float
    alpha_ci: tuple[float, float]
    beta: float
    beta_ci: tuple[float, float]
    turning_distance: float | None
    """Where R is largest, in sqrt(nats); None: not identified."""
    turning_point: str
    """`identified`, or why it is not."""

    def at(self, distance: ArrayLike) -> Floats:
        """R at these distances."""
        return np.asarray(_design(self.form, np.asarray(distance, dtype=np.float64)) @ [self.alpha, self.beta])


def fit_gao(kl_nats: ArrayLike, gain: ArrayLike, form: CurveForm, replicates: ArrayLike | None = None) -> Fit:
    """Fits one curve.

    Args:
        kl_nats: (points,) KL, at least 0; points at 0 say nothing and are left out.
        gain: (points,) gold reward less that of the initial policy.
        replicates: (resamples, points) gains in bootstrap resamples of prompts, the same resample for every point. The
            points of a best-of-n curve come from the same samples, so intervals need these; without them the residuals
            are taken as independent (Student's t), which is right only for separately trained and measured policies.

    Raises:
        ValueError: fewer than two different distances, or three points without replicates.
    """
    kl, gains = np.asarray(kl_nats, dtype=np.float64), np.asarray(gain, dtype=np.float64)
    if kl.shape != gains.shape or kl.ndim != 1 or (kl < 0).any() or not np.isfinite([kl, gains]).all():
        raise ValueError(f"kl_nats {kl.shape} and gain {gains.shape}: one finite gain for each KL from 0 is needed")
    used = kl > 0
    distance = np.sqrt(kl[used])
    if len(np.unique(distance)) < 2 or (replicates is None and len(distance) < 3):
        raise ValueError(f"{len(distance)} points above KL 0: 2 with replicates, 3 without, at different KL")
    inverse = np.asarray(np.linalg.pinv(_design(form, distance)), dtype=np.float64)
    alpha, beta = (inverse @ gains[used]).tolist()
    if replicates is None:
        intervals = _independent(inverse, distance, gains[used], form, alpha, beta)
    else:
        fitted = np.asarray(replicates, dtype=np.float64)[:, used] @ inverse.T
        intervals = np.quantile(fitted[np.isfinite(fitted).all(axis=1)], [0.025, 0.975], axis=0).T
    (alpha_low, alpha_high), (beta_low, beta_high) = intervals.tolist()
    turning, why = _turning_point(form, alpha, beta, (beta_low, beta_high), float(distance.max()))
    return Fit(form, alpha, (alpha_low, alpha_high), beta, (beta_low, beta_high), turning, why)


def _design(form: CurveForm, distance: Floats) -> Floats:
    if form is CurveForm.BEST_OF_N:
        return np.stack([distance, -(distance**2)], axis=-1)
    log = np.log(distance, out=np.zeros_like(distance), where=distance > 0)
    return np.stack([distance, -distance * log], axis=-1)


def _independent(
    inverse: Floats, distance: Floats, gains: Floats, form: CurveForm, alpha: float, beta: float
) -> Floats:
    residuals = gains - _design(form, distance) @ [alpha, beta]
    degrees = len(gains) - 2
    errors = np.sqrt(np.sum(residuals**2) / degrees * np.sum(inverse**2, axis=1))
    half = student_quantile(degrees, 0.975) * errors
    return np.stack([np.array([alpha, beta]) - half, np.array([alpha, beta]) + half], axis=1)


def _turning_point(
    form: CurveForm, alpha: float, beta: float, beta_ci: tuple[float, float], furthest: float
) -> tuple[float | None, str]:
    if not beta_ci[0] > 0:
        where = "lies below 0" if beta_ci[1] < 0 else "includes 0"
        return None, f"turning point not identified: the interval of beta {where}"
    turning = alpha / (2 * beta) if form is CurveForm.BEST_OF_N else float(np.exp(min(alpha / beta - 1, 700.0)))
    if not 0 < turning <= furthest:
        return None, f"turning point not identified: it would lie outside the distances measured (to {furthest:.3g})"
    return turning, "identified"

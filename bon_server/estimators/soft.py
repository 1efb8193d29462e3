"""Soft best-of-n: one of n samples drawn with probability proportional to exp(reward / temperature).

Verdun et al. 2025, "Soft best-of-n sampling for model alignment". These figures are about all n samples; they say
nothing of the argmax and are to be labelled as soft.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def soft_weights(rewards: ArrayLike, temperature: float) -> Floats:
    """(m, n) probabilities of being drawn. rewards: (m, n) or (n,), finite; temperature: above 0, in units of them."""
    if not temperature > 0:
        raise ValueError(f"temperature = {temperature}: above 0")
    scaled = np.atleast_2d(np.asarray(rewards, dtype=np.float64)) / temperature
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def soft_value(rewards: ArrayLike, temperature: float, values: ArrayLike | None = None) -> Floats:
    """(m,) expected value of the sample that is drawn. values: as rewards; None: the rewards."""
    of = np.atleast_2d(np.asarray(rewards if values is None else values, dtype=np.float64))
    return np.asarray((soft_weights(rewards, temperature) * of).sum(axis=1))

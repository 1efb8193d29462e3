"""KL of a tuned policy against its exact value on small policies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from bon_server.estimators import kl_full_vocabulary, kl_k1, kl_k3

RANDOM = np.random.default_rng(0)
P = RANDOM.dirichlet(np.ones(6))
Q = RANDOM.dirichlet(np.ones(6))
EXACT = float(np.sum(P * np.log(P / Q)))


def test_the_full_vocabulary_gives_the_sum_of_the_positions() -> None:
    tuned = np.log(np.tile(P, (2, 3, 1)))
    base = np.log(np.tile(Q, (2, 3, 1)))
    mask = [[True, True, True], [True, False, False]]
    assert kl_full_vocabulary(tuned, base, mask) == pytest.approx([3 * EXACT, EXACT])


def test_tokens_that_neither_policy_gives_count_nothing() -> None:
    tuned = np.log([[[0.5, 0.5, 1e-300]]])
    tuned[0, 0, 2] = -np.inf
    with np.errstate(divide="ignore"):
        assert kl_full_vocabulary(tuned, np.log([[[0.5, 0.5, 0.0]]]), [[True]]) == pytest.approx([0.0])
        assert kl_full_vocabulary(tuned, np.log([[[1.0, 0.0, 0.0]]]), [[True]])[0] == np.inf


@pytest.mark.parametrize("estimate", [kl_k1, kl_k3])
def test_sample_estimates_are_unbiased(estimate: Callable[..., NDArray[np.float64]]) -> None:
    """Within 5 standard errors over 200,000 texts (false alarms below 1e-5)."""
    tokens = np.random.default_rng(1).choice(6, p=P, size=(200_000, 2))
    each = estimate(np.log(P)[tokens], np.log(Q)[tokens], np.ones(tokens.shape, dtype=bool))
    assert abs(each.mean() - 2 * EXACT) < 5 * each.std() / np.sqrt(len(each))


def test_k3_is_never_negative_and_k1_is() -> None:
    tokens = np.random.default_rng(2).choice(6, p=P, size=(1_000, 1))
    arguments = np.log(P)[tokens], np.log(Q)[tokens], np.ones(tokens.shape, dtype=bool)
    assert kl_k3(*arguments).min() >= 0
    assert kl_k1(*arguments).min() < 0


def test_what_is_masked_may_be_anything() -> None:
    padded = np.array([[-1.0, -np.inf]]), np.array([[-2.0, -np.inf]]), [[True, False]]
    assert kl_k1(*padded) == pytest.approx([1.0])
    assert np.isfinite(kl_k3(*padded)).all()


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="mask has shape"):
        kl_k1([[0.0]], [[0.0]], [[True, True]])
    with pytest.raises(ValueError, match="base"):
        kl_k3([[0.0]], [[0.0, 0.0]], [[True]])

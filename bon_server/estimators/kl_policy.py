"""KL(tuned policy || base policy) from log-probabilities along texts that the tuned policy sampled. In nats per text.

Both policies must be taken as they are sampled: after temperature, top-p and whatever else. The KL of a text is the
expected sum over its positions of the KL of the next token (chain rule).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def kl_full_vocabulary(tuned: ArrayLike, base: ArrayLike, mask: ArrayLike) -> Floats:
    """(m,) sum over positions of sum_v p(v) log(p(v) / q(v)): the estimator with the smallest variance of the three.

    The sampled token is replaced by its expectation over the whole vocabulary, a Rao-Blackwell step, and what is summed
    is never negative (Amini, Vieira and Cotterell 2025, "Better estimation of the KL divergence between language
    models").

    tuned, base: (m, t, vocabulary) log-probabilities of the next token at each position; -inf where there is none.
    mask: (m, t), true where a token was sampled, the end of text included. Infinite where the base never gives a token
    that the tuned policy gives, as top-p can make it.
    """
    log_p, log_q = np.asarray(tuned, dtype=np.float64), np.asarray(base, dtype=np.float64)
    where = _mask(mask, log_p.shape[:2])
    if log_p.shape != log_q.shape:
        raise ValueError(f"tuned has shape {log_p.shape}, base {log_q.shape}: they must be the same")
    result = np.zeros(where.shape)
    for row, column in np.argwhere(where):
        some = log_p[row, column] > -np.inf
        p, q = log_p[row, column][some], log_q[row, column][some]
        result[row, column] = np.sum(np.exp(p) * (p - q))
    return np.asarray(result.sum(axis=1))


def kl_k1(tuned: ArrayLike, base: ArrayLike, mask: ArrayLike) -> Floats:
    """(m,) log p(text) - log q(text): unbiased, of large variance, often negative.

    tuned, base: (m, t) log-probabilities of the sampled tokens; mask: (m, t). "k1" of Schulman 2020, "Approximating KL
    divergence".
    """
    log_ratio = _log_ratio(tuned, base, mask)
    return np.asarray(log_ratio.sum(axis=1))


def kl_k3(tuned: ArrayLike, base: ArrayLike, mask: ArrayLike) -> Floats:
    """(m,) sum over positions of r - 1 - log r with r = q / p: "k3" of Schulman 2020, what GRPO puts into its loss.

    Never negative. Summed over positions it is unbiased where q has no mass outside the support of p; where r has
    heavy tails, which is where the policies differ much, the mean of a few samples lies far below the truth.
    """
    log_r = -_log_ratio(tuned, base, mask)
    return np.asarray((np.expm1(log_r) - log_r).sum(axis=1))


def _log_ratio(tuned: ArrayLike, base: ArrayLike, mask: ArrayLike) -> Floats:
    log_p, log_q = np.asarray(tuned, dtype=np.float64), np.asarray(base, dtype=np.float64)
    if log_p.ndim != 2 or log_p.shape != log_q.shape:
        raise ValueError(f"tuned has shape {log_p.shape}, base {log_q.shape}: both (texts, positions)")
    where = _mask(mask, log_p.shape)
    return np.subtract(log_p, log_q, out=np.zeros(log_p.shape), where=where)


def _mask(mask: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    where = np.asarray(mask, dtype=np.bool_)
    if where.shape != shape:
        raise ValueError(f"mask has shape {where.shape}, {shape} is needed")
    return where

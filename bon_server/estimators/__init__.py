"""Statistics of best-of-n as pure functions on arrays. All KL figures are in nats. Equations: docs/statistics.md.

order_statistics   reward@k, pass@k, majority vote, extrapolation beyond the samples there are
clusters           sums over prompts that stay small, and the paired bootstrap over them
win_rate           against another sample, another policy, and its bound
kl_best_of_n       KL(best-of-n || policy): bounds, exact for discrete rewards, from the winner's probability
kl_policy          KL of a tuned policy, from log-probabilities
overoptimisation   the fits of Gao et al. 2022
soft               soft best-of-n
diversity          how varied texts are
"""

from __future__ import annotations

from bon_server.estimators.clusters import ClusterSums, bootstrap_totals, interval
from bon_server.estimators.kl_best_of_n import (
    kl_any_selection_bound,
    kl_bound,
    kl_discrete,
    kl_exact_plugin,
    kl_soft_bound,
    kl_winner_probability,
    kl_winner_probability_at_k,
)
from bon_server.estimators.kl_policy import kl_full_vocabulary, kl_k1, kl_k3
from bon_server.estimators.order_statistics import (
    order_weights,
    pass_at_k,
    reward_at_k,
    reward_at_k_ragged,
    reward_beyond,
    tie_means,
    vote_counts,
)
from bon_server.estimators.overoptimisation import CurveForm, Fit, fit_gao
from bon_server.estimators.soft import soft_value, soft_weights
from bon_server.estimators.win_rate import preference, win_rate_at_k, win_rate_bound

__all__ = [
    "ClusterSums",
    "CurveForm",
    "Fit",
    "bootstrap_totals",
    "fit_gao",
    "interval",
    "kl_any_selection_bound",
    "kl_bound",
    "kl_discrete",
    "kl_exact_plugin",
    "kl_full_vocabulary",
    "kl_k1",
    "kl_k3",
    "kl_soft_bound",
    "kl_winner_probability",
    "kl_winner_probability_at_k",
    "order_weights",
    "pass_at_k",
    "preference",
    "reward_at_k",
    "reward_at_k_ragged",
    "reward_beyond",
    "soft_value",
    "soft_weights",
    "tie_means",
    "vote_counts",
    "win_rate_at_k",
    "win_rate_bound",
]

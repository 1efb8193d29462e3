"""`bon evaluate kl`: how far the answers that were given are from the policy, in nats, by every figure that is valid.

    best-of-n   the best of n scored samples: bound, plug-in and, where the log has log-probabilities, the winner's
    soft        drawn from n scored samples: a bound from the weights of the draw
    stopped     budget, deadline or failure: log n, which no choice among n samples can exceed
    partial     fewer scored than asked for: the same

Imported samples were not chosen from; they are taken as if the best of each request's had been.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bon_server.core.errors import LogError
from bon_server.core.types import SelectionRule
from bon_server.estimators.clusters import ClusterSums, Floats, ratios
from bon_server.estimators.kl_best_of_n import (
    kl_any_selection_bound,
    kl_bound,
    kl_exact_plugin,
    kl_soft_bound,
    kl_winner_probability,
)
from bon_server.evaluate.reading import LogSource, ReadCounts, tables
from bon_server.evaluate.table import Block, Table, blocks

BEST, SOFT, STOPPED, PARTIAL = "best-of-n", "soft", "stopped", "partial"
# columns of sums
_REQUESTS, _PLUGIN, _WINNER, _WITH_LOGPROB, _SOFT = range(5)

Groups = dict[tuple[str, int], ClusterSums]


def kl(source: LogSource, seed: int = 0) -> dict[str, Any]:
    """The document of `bon evaluate kl --json`: a row for each way of choosing and each n.

    Every request is one answer, so they are not merged. Raises `LogError` when a log cannot be read or has no samples.
    """
    seen, groups = ReadCounts(), Groups()
    columns = ("n", "rule", "selected_index", "selection_temperature")
    for table in tables(replace(source, merge=False), ("reward", "logprob"), seen, columns):
        _add(groups, table)
    if not groups:
        raise LogError(f"{seen.requests} requests read; none has candidates of a policy")
    return {
        "requests": seen.requests,
        "reward_models": sorted(seen.reward_models),
        "left_out": dict(sorted((+seen.left_out).items())),
        "reference": "the policy at the sampling settings of each request",
        "answers": [_row(how, n, sums, seed) for (how, n), sums in sorted(groups.items())],
    }


def _add(groups: Groups, table: Table) -> None:
    rewards = table.numbers["reward"]
    asked = table.columns["n"].astype(np.int64)
    for block in blocks(table, np.isfinite(rewards)):
        n = block.candidates.shape[1]
        rule = table.columns["rule"][block.requests]
        stopped = table.stopped[block.requests]
        complete = ~stopped & (asked[block.requests] == n)
        soft = complete & (rule == SelectionRule.SOFT)
        best = complete & ~soft
        _add_best(_sums(groups, BEST, n), table, _some(block, best))
        _add_soft(_sums(groups, SOFT, n), table, _some(block, soft))
        for how, which in ((STOPPED, stopped), (PARTIAL, ~stopped & ~complete)):
            for wanted in np.unique(asked[block.requests][which]).tolist():
                prompts = table.prompt[block.requests[which & (asked[block.requests] == wanted)]]
                _count(_sums(groups, how, wanted), prompts)
    for key in [key for key, sums in groups.items() if not len(sums.table)]:
        del groups[key]


def _sums(groups: Groups, how: str, n: int) -> ClusterSums:
    return groups.setdefault((how, n), ClusterSums(5))


def _some(block: Block, which: Any) -> Block:
    return Block(block.requests[which], block.candidates[which])


def _count(sums: ClusterSums, prompts: Any) -> None:
    sums.add(prompts, slice(_REQUESTS, _REQUESTS + 1), np.ones((len(prompts), 1)))


def _add_best(sums: ClusterSums, table: Table, block: Block) -> None:
    requests, candidates = block
    if not len(requests):
        return
    n = candidates.shape[1]
    prompts = table.prompt[requests]
    _count(sums, prompts)
    sums.add(prompts, slice(_PLUGIN, _PLUGIN + 1), kl_exact_plugin(table.numbers["reward"][candidates], [n]))
    winner = table.columns["selected_index"][requests].astype(np.float64)
    chosen = np.isfinite(winner)
    logprobs = np.full(len(requests), np.nan)
    picked = candidates[chosen, winner[chosen].astype(np.int64)]  # all n are scored: position is index
    logprobs[chosen] = table.numbers["logprob"][picked]
    known = np.isfinite(logprobs)
    estimates = np.array([[kl_winner_probability(n, logprob), 1.0] for logprob in logprobs[known].tolist()])
    sums.add(prompts[known], slice(_WINNER, _WITH_LOGPROB + 1), estimates.reshape(-1, 2))


def _add_soft(sums: ClusterSums, table: Table, block: Block) -> None:
    requests, candidates = block
    temperatures = table.columns["selection_temperature"][requests].astype(np.float64)
    for temperature in np.unique(temperatures[temperatures > 0]).tolist():
        alike = temperatures == temperature
        prompts = table.prompt[requests[alike]]
        _count(sums, prompts)
        bounds = kl_soft_bound(table.numbers["reward"][candidates[alike]], temperature)
        sums.add(prompts, slice(_SOFT, _SOFT + 1), bounds[:, None])


def _row(how: str, n: int, sums: ClusterSums, seed: int) -> dict[str, Any]:
    table = sums.table
    columns, counts = [_PLUGIN, _WINNER, _SOFT], [_REQUESTS, _WITH_LOGPROB, _REQUESTS]
    means, between = ratios(table[:, columns], table[:, counts], seed, sums.grouped)
    row: dict[str, Any] = {
        "how": how,
        "n": n,
        "requests": int(table[:, _REQUESTS].sum()),
        "kl_any_selection_bound_nats": kl_any_selection_bound(n),
        "kl_bound_nats": kl_bound(n) if how == BEST else None,
    }
    for position, (name, valid_for) in enumerate(
        (("exact_plugin", BEST), ("winner_probability", BEST), ("soft_bound", SOFT))
    ):
        row |= _figure(name, means[position], between[:, position], how == valid_for)
    row["with_logprob"] = int(table[:, _WITH_LOGPROB].sum())
    return row


def _figure(name: str, mean: float, between: Floats, valid: bool) -> dict[str, Any]:
    there = valid and bool(np.isfinite(mean))
    interval = [float(bound) for bound in between] if there and np.isfinite(between).all() else None
    return {f"kl_{name}_nats": float(mean) if there else None, f"kl_{name}_ci": interval}

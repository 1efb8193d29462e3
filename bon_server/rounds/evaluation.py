"""What a round came to: figures of its policy on the held-out prompts, alone and paired with others."""

from __future__ import annotations

from typing import Any

import numpy as np

from bon_server.estimators.clusters import figures
from bon_server.rounds.held_out import FIGURES, GREEDY, SAMPLED, Floats, HeldOut

_NAMES = tuple(FIGURES)
_OF_SEVERAL = ("entropy_nats", "distinct_1", "distinct_2", "distinct_3")
"""What says nothing of a single greedy text."""


def alone(held_out: HeldOut, seed: int) -> dict[str, Any]:
    """{mode: {"prompts", figure: {"mean", "ci"} or None}}; intervals of 95 % by a bootstrap over prompts."""
    return {
        mode: {"prompts": len(sums)} | _told(np.array(list(sums.values())), mode, "mean", seed)
        for mode, sums in held_out.sums.items()
    }


def paired(there: HeldOut, before: HeldOut, seed: int) -> dict[str, Any]:
    """{mode: {"prompts", figure: {"difference", "ci"} or None}}, on the prompts that both have; above 0: it rose."""
    told = {}
    for mode in (GREEDY, SAMPLED):
        shared = sorted(there.sums[mode].keys() & before.sums[mode].keys())
        sums = [np.concatenate([there.sums[mode][one], before.sums[mode][one]]) for one in shared]
        told[mode] = {"prompts": len(shared)} | _told(np.array(sums), mode, "difference", seed)
    return told


def kl_figure(values: list[float], seed: int) -> dict[str, Any] | None:
    """{"mean", "ci", "texts", "infinite"} of KL values, one of a prompt; the mean is None when one is infinite.

    Infinite is the KL of a text in which the policy could say what the first one, cut by top_p, never says.
    """
    if not values:
        return None
    infinite = sum(value == np.inf for value in values)
    mean, between = (
        (None, None)
        if infinite
        else _figure(
            np.stack([values, np.ones(len(values))], axis=1), lambda totals: totals[:, :1] / totals[:, 1:], seed
        )
    )
    return {"mean": mean, "ci": between, "texts": len(values), "infinite": infinite}


def _told(sums: Floats, mode: str, name: str, seed: int) -> dict[str, Any]:
    """sums: (prompts, 2 or 4, figures): divided, by what; and the same of another policy, which is taken away."""
    told: dict[str, Any] = {}
    for column, figure in enumerate(_NAMES):
        if mode == GREEDY and figure in _OF_SEVERAL:
            continue
        usable = sums[(sums[:, 1::2, column] != 0).all(axis=1), :, column] if len(sums) else np.zeros((0, 2))
        mean, between = _figure(usable, _ratio, seed) if len(usable) else (None, None)
        told[figure] = None if mean is None else {name: mean, "ci": between}
    return told


def _ratio(totals: Floats) -> Floats:
    """(…, 1) from (…, 2) or (…, 4)."""
    ratios = totals[:, ::2] / totals[:, 1::2]
    return ratios[:, :1] if ratios.shape[1] == 1 else ratios[:, :1] - ratios[:, 1:]


def _figure(table: Floats, function: Any, seed: int) -> tuple[float | None, list[float] | None]:
    value, between = figures(table, function, seed)
    there = [float(bound) for bound in between[:, 0]] if np.isfinite(between).all() else None
    return (float(value[0]) if np.isfinite(value[0]) else None), there

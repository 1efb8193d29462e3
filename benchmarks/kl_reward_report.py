"""From arms to the document, the table, and how the two proxies compare.

The document: `arms`, a list of `{"name", "kind", "proxy_model", "kl_nats", "kl_ci", "kl_method", "kl_bound_nats"?,
"proxy", "proxy_ci", "gold", "gold_ci", "gold_gain", "gold_gain_ci", "proxy_gain", "proxy_gain_ci", "train_tokens",
"answer_tokens", "seeds", "by_seed", "control"?, "gold_minus_control"?, "gold_minus_control_ci"?, …}`. Gains are paired
differences to the base. Intervals: 95 %, over questions, with seeds averaged; `by_seed` has the means of each seed.
`seconds` has those of each part, and as `all` those in which any was being done: `lanes` are done at a time.
`fits` has the curves of Gao et al. 2022 for best-of-n, `R(d) = d (alpha - beta d)` with d = sqrt(KL), for each proxy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.arms.intervals import figures, over_seeds
from benchmarks.arms.setting import STRONG, WEAK
from benchmarks.kl_reward_arms import BASE, Arm
from bon_server.estimators.kl_best_of_n import kl_bound
from bon_server.evaluate.curve import fit_of_curve

Floats = NDArray[np.float64]
MEASURES = ("proxy", "gold")
PROXIES = {STRONG: "The proxy is the reward model", WEAK: "The proxy is the weak reward model"}


def report(arms: Sequence[Arm]) -> dict[str, Any]:
    """Everything that was measured."""
    found = figures(_columns(arms))
    return {
        "arms": [_told(arm, found) for arm in arms],
        "questions": len(arms[0].gold[0]),
        "fits": {proxy: _fit([arm for arm in arms if arm.proxy_model == proxy]) for proxy in _proxies(arms)},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _proxies(arms: Sequence[Arm]) -> list[str]:
    return list(dict.fromkeys(arm.proxy_model for arm in arms))


def _key(arm: Arm, measure: str) -> str:
    return f"{arm.proxy_model}/{arm.name}/{measure}"


def _columns(arms: Sequence[Arm]) -> dict[str, Floats]:
    """(P,) of each figure, seeds averaged: all go through one bootstrap."""
    means = {_key(arm, measure): over_seeds(getattr(arm, measure)) for arm in arms for measure in (*MEASURES, "kl")}
    gains: dict[str, Floats] = {}
    for arm in arms:
        for measure in MEASURES:
            own = means[_key(arm, measure)]
            gains[_key(arm, f"{measure}_gain")] = own - means[f"{arm.proxy_model}/{BASE}/{measure}"]
            if arm.control is not None:
                of_control = means[f"{arm.proxy_model}/{arm.control}/{measure}"]
                gains[_key(arm, f"{measure}_minus_control")] = own - of_control
    return means | gains


def _told(arm: Arm, found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    names = [*MEASURES, *(f"{measure}_gain" for measure in MEASURES)]
    if arm.control is not None:
        names += [f"{measure}_minus_control" for measure in MEASURES]
    told: dict[str, Any] = {"name": arm.name, "kind": arm.kind, "proxy_model": arm.proxy_model}
    kl = found[_key(arm, "kl")]
    told |= {"kl_nats": kl["value"], "kl_ci": kl["ci95"], "kl_method": arm.kl_method}
    if arm.kind == "best-of-n":
        told["kl_bound_nats"] = round(kl_bound(int(arm.name.rpartition("-")[2])), 4)
    for name in names:
        figure = found[_key(arm, name)]
        told |= {name: figure["value"], f"{name}_ci": figure["ci95"]}
    by_seed = [
        {measure: round(float(np.nanmean(values[seed])), 4) for measure, values in _measures(arm)}
        for seed in range(len(arm.gold))
    ]
    told |= {"control": arm.control, "seeds": len(arm.gold), "by_seed": by_seed}
    return told | {"train_tokens": round(arm.train_tokens), "answer_tokens": round(arm.answer_tokens, 1)}


def _measures(arm: Arm) -> list[tuple[str, Sequence[Floats]]]:
    return [("proxy", arm.proxy), ("gold", arm.gold), ("kl_nats", arm.kl)]


def _fit(arms: Sequence[Arm]) -> dict[str, Any] | None:
    """Of gold against the distance, through the best-of-n arms of one proxy; None with fewer than four."""
    sampled = [arm for arm in arms if arm.kind in (BASE, "best-of-n")]
    gold = np.stack([arm.gold[0] for arm in sampled], axis=1)
    gained = np.diff(gold, axis=1, prepend=gold[:, :1])
    distances = np.array([arm.kl[0].mean() for arm in sampled])
    return fit_of_curve(distances, gained, np.ones(gained.shape), seed=0)


def table(document: Mapping[str, Any]) -> str:
    """The figures as Markdown, a table for each proxy; of best-of-n the powers of two."""
    machine = document["machine"]
    lines = [
        f"{document['questions']} held-out questions ({document['split']} split), size `{document['size']}`. "
        f"{document['date'][:10]}, {machine['cpu']}, {machine['cores']} cores, "
        f"{document['seconds']['all'] / 60:.0f} minutes.",
    ]
    for proxy, title in PROXIES.items():
        arms = [arm for arm in document["arms"] if arm["proxy_model"] == proxy and _is_shown(arm)]
        if arms:
            lines += ["", f"**{title}**", "", *_rows(arms)]
    return "\n".join(lines) + "\n"


def _is_shown(arm: Mapping[str, Any]) -> bool:
    n = int(arm["name"].rpartition("-")[2]) if arm["kind"] == "best-of-n" else 1
    return n & (n - 1) == 0


def _rows(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| | KL, nats | proxy | gold | gold − base | gold − control | training tokens | tokens an answer | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        kl = f"{arm['kl_nats']:.2f}" + (f" (bound {arm['kl_bound_nats']:.2f})" if "kl_bound_nats" in arm else "")
        cells = [arm["name"], kl, *(_shown(arm, name) for name in ("proxy", "gold", "gold_gain", "gold_minus_control"))]
        cells += [f"{arm['train_tokens']:,}", f"{arm['answer_tokens']:.0f}", str(arm["seeds"])]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _shown(arm: Mapping[str, Any], name: str) -> str:
    if arm.get(name) is None or (arm["name"] == BASE and name.endswith("gain")):
        return ""
    low, high = arm[f"{name}_ci"] or (float("nan"), float("nan"))
    return f"{arm[name]:.3f} [{low:.3f}, {high:.3f}]"

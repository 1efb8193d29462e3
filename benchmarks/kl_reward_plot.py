"""Gold and proxy against KL, and gold against proxy, for all arms of `kl_reward.py`: a row for each proxy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.arms.setting import STRONG, WEAK

MARKERS = {
    "best per prompt": ("o", "tab:blue"),
    "random per prompt": ("x", "tab:blue"),
    "top-k overall": ("s", "tab:cyan"),
    "random-k overall": ("+", "tab:cyan"),
    "DPO": ("D", "tab:green"),
}
RL_COLOR = "tab:red"
ROUND_NATS = (0, 0.5, 1, 2, 4, 7, 10, 15, 20, 30, 40, 60, 80, 100, 150, 200)
TITLES = {STRONG: "reward model", WEAK: "weak reward model"}
KL, PROXY, GOLD = "kl_nats", "proxy", "gold"
PANELS = ((KL, GOLD), (KL, PROXY), (PROXY, GOLD))
NAMES = {KL: "KL to the base policy, nats (square-root axis)", PROXY: "proxy: mean reward", GOLD: "gold: accuracy"}
CI = {KL: "kl_ci", PROXY: "proxy_ci", GOLD: "gold_ci"}

Arms = Sequence[Mapping[str, Any]]


def plot(document: Mapping[str, Any], file: Path) -> None:
    """Draws the document of `kl_reward.py`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    proxies = list(dict.fromkeys(arm["proxy_model"] for arm in document["arms"]))
    size = (13, 4.2 * len(proxies) + 0.4)
    figure, grid = plt.subplots(len(proxies), 3, figsize=size, layout="constrained", squeeze=False)
    for row, proxy in zip(grid, proxies, strict=True):
        arms = [arm for arm in document["arms"] if arm["proxy_model"] == proxy]
        for axes, (x, y) in zip(row, PANELS, strict=True):
            _panel(axes, arms, x, y)
        row[0].set_title(f"proxy: the {TITLES[proxy]}", loc="left", fontsize=10)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, ncols=len(labels), loc="outside lower center")
    figure.suptitle(
        f"{document['questions']} held-out questions, {document['split']} split; bars and bands: 95 % over questions",
        fontsize=10,
    )
    figure.savefig(file)
    plt.close(figure)


def _panel(axes: Any, arms: Arms, x: str, y: str) -> None:
    _curve(axes, [arm for arm in arms if arm["kind"] in ("base", "best-of-n")], x, y)
    later = [arm for arm in arms if arm["kind"] == "rl"]
    axes.plot([arm[x] for arm in later], [arm[y] for arm in later], "-", color=RL_COLOR, lw=1.2)
    for index, arm in enumerate(later):
        label = "GRPO, after so many steps" if index == 0 else None
        _point(axes, arm, x, y, fmt="v", color=RL_COLOR, label=label)
        _name(axes, arm, x, y, arm["name"].split()[1], color=RL_COLOR)
    for arm in arms:
        if arm["name"] in MARKERS:
            marker, color = MARKERS[arm["name"]]
            _point(axes, arm, x, y, fmt=marker, color=color, label=arm["name"])
    base = next(arm for arm in arms if arm["kind"] == "base")
    axes.axhline(base[y], color="0.7", lw=0.8, zorder=0)
    axes.annotate("base", (base[x], base[y]), xytext=(3, -11), textcoords="offset points", fontsize=8)
    largest = max((arm for arm in arms if arm["kind"] == "best-of-n"), key=lambda arm: arm[KL], default=None)
    if largest is not None:
        _name(axes, largest, x, y, largest["name"].rsplit("-", 1)[1], color="k")
    if x == KL:
        axes.set_xscale("function", functions=(_root, _square))
        axes.set_xlim(left=0)
        axes.set_xticks(ticks := _ticks(axes.get_xlim()[1]), [f"{tick:g}" for tick in ticks])
    axes.set_xlabel(NAMES[x], fontsize=9)
    axes.set_ylabel(NAMES[y], fontsize=9)
    axes.grid(alpha=0.3)


def _curve(axes: Any, arms: Arms, x: str, y: str) -> None:
    """Best-of-n, from the base on, with its band."""
    xs, bands = [arm[x] for arm in arms], [arm[CI[y]] for arm in arms]
    axes.plot(xs, [arm[y] for arm in arms], ".-", color="k", ms=5, lw=1.2, label="best-of-n, n from 1 on")
    if all(bands):
        axes.fill_between(xs, [band[0] for band in bands], [band[1] for band in bands], color="0.6", alpha=0.2, lw=0)


def _point(axes: Any, arm: Mapping[str, Any], x: str, y: str, **style: Any) -> None:
    axes.errorbar([arm[x]], [arm[y]], xerr=_error(arm, x), yerr=_error(arm, y), ms=6, lw=0.8, capsize=2, **style)


def _name(axes: Any, arm: Mapping[str, Any], x: str, y: str, text: str, color: str) -> None:
    axes.annotate(text, (arm[x], arm[y]), xytext=(5, 4), textcoords="offset points", fontsize=8, color=color)


def _error(arm: Mapping[str, Any], of: str) -> Any:
    """(2, 1) below and above, or None."""
    bounds = arm[CI[of]]
    return None if bounds is None else [[max(0.0, arm[of] - bounds[0])], [max(0.0, bounds[1] - arm[of])]]


def _ticks(largest: float) -> list[float]:
    """Round numbers, far enough apart on the square-root axis."""
    ticks: list[float] = [0]
    for nats in ROUND_NATS:
        if nats <= largest and nats**0.5 - ticks[-1] ** 0.5 > largest**0.5 / 11:
            ticks.append(nats)
    return ticks


def _root(values: Any) -> Any:
    import numpy as np

    return np.sqrt(np.maximum(values, 0.0))


def _square(values: Any) -> Any:
    return values**2

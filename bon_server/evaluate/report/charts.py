"""The report's pictures, as SVG for an HTML page. No state is shared: figures are drawn without pyplot."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
Rows = Sequence[dict[str, Any]]
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#5f6b76"
"""Told apart by most colour-blind eyes too (Okabe and Ito)."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#1c2127",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.grid": True,
    "grid.color": "#e6e9ec",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
LENGTH_BINS = 10


def histogram(rewards: Floats, winners: Floats) -> str:
    """How rewards are distributed, of all candidates and of winners. rewards: (c,), winners: (m,)."""

    def draw(axes: Axes) -> None:
        bins = min(30, max(5, int(len(rewards) ** 0.5)))
        low, high = float(rewards.min()), float(rewards.max())
        if high - low < 1e-9 * max(abs(low), abs(high)):  # equal but for rounding: no room for bins between them
            low, high = low - 0.5, high + 0.5
        edges = np.histogram_bin_edges(rewards, bins, (low, high)).tolist()
        axes.hist(rewards, edges, density=True, color=GREY, alpha=0.45, label="all candidates")
        axes.hist(winners, edges, density=True, histtype="step", color=BLUE, linewidth=2, label="winners")
        axes.set(xlabel="reward", ylabel="density")
        axes.legend()

    return _svg("histogram", "Histogram of rewards, of all candidates and of winners", draw)


def over_k(rows: Rows, name: str, label: str, colour: str) -> str:
    """A figure of the best of k against k, with its band."""

    def draw(axes: Axes) -> None:
        ks = [row["k"] for row in rows]
        _band(axes, ks, rows, name, colour)
        axes.plot(ks, [row[name] for row in rows], color=colour, linewidth=2, marker="o", markersize=3.5)
        axes.set(xlabel="k (samples)", ylabel=f"{label} of the best of k")
        _log2(axes, ks)

    return _svg(f"over-k-{name}", f"{label} of the best of k against k, with 95 % band", draw)


def value_against_reward(rows: Rows, value: str) -> str:
    """The value against the reward that was optimised, a point for each k."""

    def draw(axes: Axes) -> None:
        rewards, values = [row["reward"] for row in rows], [row["value"] for row in rows]
        axes.plot(rewards, values, color=ORANGE, linewidth=1.5, marker="o", markersize=4)
        low, high = _bounds(rows, "value", values)
        axes.fill_between(rewards, low, high, color=ORANGE, alpha=0.15, linewidth=0)
        _label(axes, rows, "reward", "value")
        axes.set(xlabel="reward of the best of k (proxy)", ylabel=f"{value} of the best of k")

    return _svg("value-against-reward", f"{value} against reward, a point for each k", draw)


def frontier(rows: Rows, value: str | None) -> str:
    """Reward and value against KL, a point for each k.

    One above the other: two scales in one picture invite comparing what has no common unit.
    """
    placed = [row for row in rows if row["kl_nats"] is not None]

    shown = [("reward", "reward", BLUE), *([] if value is None else [("value", value, ORANGE)])]

    def draw(*panels: Axes) -> None:
        kl = [row["kl_nats"] for row in placed]
        for panel, (name, label, colour) in zip(panels, shown, strict=True):
            figures = [row[name] for row in placed]
            panel.fill_between(kl, *_bounds(placed, name, figures), color=colour, alpha=0.18, linewidth=0)
            panel.plot(kl, figures, color=colour, linewidth=2, marker="o", markersize=3.5)
            panel.set_ylabel(label)
        _label(panels[0], placed, "kl_nats", "reward")
        panels[-1].set_xlabel("KL to the policy, nats")

    return _svg("frontier", "Reward and value of the best of k against its KL to the policy", draw, len(shown))


def length_bias(lengths: Floats, rewards: Floats) -> str:
    """Mean reward by length, both less the mean of their prompt. lengths, rewards: (c,)."""

    def draw(axes: Axes) -> None:
        edges = np.unique(np.quantile(lengths, np.linspace(0, 1, LENGTH_BINS + 1)))
        bins = np.clip(np.searchsorted(edges, lengths, side="right") - 1, 0, max(len(edges) - 2, 0))
        present = [number for number in range(len(edges)) if np.sum(bins == number) > 1]
        centres = [float(lengths[bins == number].mean()) for number in present]
        means = np.array([rewards[bins == number].mean() for number in present])
        errors = [rewards[bins == number].std(ddof=1) / np.sqrt(np.sum(bins == number)) for number in present]
        axes.axhline(0, color=GREY, linewidth=1)
        axes.errorbar(centres, means, 1.96 * np.array(errors), color=BLUE, fmt="o", markersize=4, capsize=2)
        axes.set(xlabel="characters, less the prompt's mean", ylabel="reward, less the prompt's mean")

    return _svg("length-bias", "Reward against length within prompts", draw)


def _svg(name: str, title: str, draw: Callable[..., None], panels: int = 1) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # text stays text: the browser has a font
        figure = Figure(figsize=(4.8, 3.3), layout="constrained")
        draw(*figure.subplots(panels, sharex=True, squeeze=False)[:, 0])
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Title": title})
    svg = out.getvalue()
    return svg[svg.index("<svg") :].replace("<svg ", '<svg role="img" ', 1)


def _band(axes: Axes, ks: Sequence[int], rows: Rows, name: str, colour: str) -> None:
    low, high = _bounds(rows, name, [row[name] for row in rows])
    axes.fill_between(ks, low, high, color=colour, alpha=0.18, linewidth=0)


def _bounds(rows: Rows, name: str, instead: Sequence[float]) -> tuple[list[float], list[float]]:
    """Interval bounds; where there are none, the figure itself."""
    pairs = [row[f"{name}_ci"] or (one, one) for row, one in zip(rows, instead, strict=True)]
    return [low for low, _ in pairs], [high for _, high in pairs]


def _label(axes: Axes, rows: Rows, x: str, y: str) -> None:
    """Writes k over the points of powers of two and of the last."""
    axes.margins(x=0.12, y=0.12)
    ks = [row for row in rows if row["k"] & (row["k"] - 1) == 0 and 2 * row["k"] <= rows[-1]["k"]]
    for row in [*ks, rows[-1]]:
        where: Any = {"xytext": (-4, 4), "textcoords": "offset points", "ha": "right", "fontsize": 9}
        axes.annotate(f"k = {row['k']}", (row[x], row[y]), **where)


def _log2(axes: Axes, ks: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    ticks = [k for k in ks if k & (k - 1) == 0]
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()

"""Tokens against reward, for all arms of `early_stopping.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MARKERS = {"fixed": "s", "threshold": "^", "adaptive": "o", "pruning": "v", "both": "D"}
LABELS = {
    "threshold": "stop at a reward",
    "adaptive": "adaptive N by price",
    "pruning": "pruning by prefixes",
    "both": "threshold in waves, and pruning",
}


def plot(document: dict[str, Any], file: Path) -> None:
    """Draws the document of `early_stopping.py`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    curve = document["fixed_curve"]
    axes.plot([one["tokens"] for one in curve], [one["reward"] for one in curve], "k-", lw=1, label="fixed N = 1 … 16")
    for kind, label in LABELS.items():
        arms = [one for one in document["arms"].values() if one["kind"] == kind]
        rewards = [one["reward"]["value"] for one in arms]
        axes.plot([one["tokens"] for one in arms], rewards, MARKERS[kind], ms=6, label=label)
    last = curve[-1]
    axes.plot([last["tokens"]], [last["reward"]], "ks", ms=6)
    axes.annotate("N = 16", (last["tokens"], last["reward"]), xytext=(4, -14), textcoords="offset points")
    chosen = document["arms"][document["chosen"]]
    axes.plot([chosen["tokens"]], [chosen["reward"]["value"]], "o", ms=14, mfc="none", mec="tab:red", label="chosen")
    axes.set_xlabel("generated tokens a question")
    axes.set_ylabel("mean reward of the answer")
    axes.set_title(f"{document['problems']} questions, {document['split']} split", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(file)
    plt.close(figure)

"""The learning curve: what was logged of each step, as JSON and as a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

PICTURE_NAME = "learning_curve.svg"
_SMOOTH_SHARE = 0.1
_KEPT = {
    "loss": "loss",
    "eval_loss": "eval_loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "mean_token_accuracy": "token_accuracy",
    "rewards/margins": "reward_margin",
    "rewards/accuracies": "pair_accuracy",
    "eval_rewards/accuracies": "eval_pair_accuracy",
}
"""Names of the trainer, and here."""
History = list[dict[str, Any]]


def history_of(checkpoint: Path) -> tuple[History, int]:
    """(a dictionary a step, tokens seen without padding) from the beginning, whatever runs it took."""
    state = json.loads((checkpoint / "trainer_state.json").read_bytes())
    steps: dict[int, dict[str, Any]] = {}
    for logged in state["log_history"]:
        step = steps.setdefault(logged["step"], {"step": logged["step"]})
        step |= {ours: _finite(logged[theirs]) for theirs, ours in _KEPT.items() if theirs in logged}
    return [steps[number] for number in sorted(steps)], int(state["num_input_tokens_seen"])


def _finite(value: Any) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def draw(history: History, path: Path, title: str) -> bool:
    """Draws loss by step; false: matplotlib is not installed."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        return False
    losses = [(one["step"], one["loss"]) for one in history if one.get("loss") is not None]
    held_out = [(one["step"], one["eval_loss"]) for one in history if one.get("eval_loss") is not None]
    with mpl.rc_context({"svg.hashsalt": "learning curve", "svg.fonttype": "none", "text.parse_math": False}):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        if losses:
            steps, values = zip(*losses, strict=True)
            axes.plot(steps, values, color="#5f6b76", alpha=0.45, linewidth=1, label="training, each step")
            axes.plot(steps, _smooth(values), color="#0072B2", linewidth=2, label="training, running mean")
        if held_out:
            axes.plot(*zip(*held_out, strict=True), color="#D55E00", marker="o", markersize=4, label="held out")
        axes.set(xlabel="optimiser step", ylabel="loss, nats", title=title)
        axes.grid(color="#e6e9ec")
        axes.legend(frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    return True


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Mean of a tenth of the steps, those up to each."""
    window = max(1, round(_SMOOTH_SHARE * len(values)))
    return [sum(values[max(0, end - window) : end]) / min(end, window) for end in range(1, len(values) + 1)]

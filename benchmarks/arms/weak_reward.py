"""A reward model trained like the demo's, on a small share of its labels, so that it can be seen to be exploited."""

from __future__ import annotations

from pathlib import Path

from benchmarks.arms.commands import python
from benchmarks.arms.experiment import Experiment
from benchmarks.arms.work import Document

LABELS = {"problems": 48, "n": 8, "steps": 40}
"""The demo's own: 1,000 problems, 8 samples each, 220 steps."""
QUICK = {"problems": 24, "n": 4, "steps": 4}


def weak_reward(experiment: Experiment, quick: bool) -> Path:
    """The model's directory, trained when it is not there yet: a few minutes."""
    sizes = QUICK if quick else LABELS

    def do(folder: Path) -> Document:
        arguments = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
        python(
            "benchmarks.arms.train_weak_reward", "--policy", experiment.setting.policy, "--out", str(folder), *arguments
        )
        return {"labels": sizes}

    return experiment.work.part("weak-reward", do) / "model"

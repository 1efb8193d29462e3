"""`bon train`: from a training set to a model directory that `bon serve --policy` loads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bon_server.offline.training.options import TrainOptions


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    step: int
    """Optimiser steps done, those of earlier runs that this one goes on from included."""
    steps: int
    """Of the whole run."""
    loss: float | None
    """Of the last step, nats a token (dpo: nats a pair); None before the first one."""


OnProgress = Callable[[Progress], None]
OnWarning = Callable[[str], None]


def train(
    options: TrainOptions, on_progress: OnProgress = lambda _: None, on_warning: OnWarning = lambda _: None
) -> dict[str, Any]:
    """Trains, and returns the content of `training.json` in `options.out`.

    A run that was killed is gone on with by the same options; of a finished one the result is returned at once, with
    `"already_finished": true` in it.

    Raises ConfigError: options that are not allowed. StartupError: the model cannot be loaded, or a package is missing.
    LogError: data that cannot be used, or an `out` that holds something else.
    """
    raise NotImplementedError

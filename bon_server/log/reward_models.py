"""What the reward models of a record are called, so that rewards of different ones are told apart."""

from __future__ import annotations

from collections.abc import Sequence

from bon_server.types import ModelRef


def reward_model_names(models: Sequence[ModelRef]) -> tuple[str, str]:
    """What an ensemble (mostly of one) is called: `ID+…`, and exactly: `ID@REVISION+…`."""
    loose = "+".join(model.id for model in models)
    exact = "+".join(f"{model.id}@{model.revision}" if model.revision else model.id for model in models)
    return loose, exact

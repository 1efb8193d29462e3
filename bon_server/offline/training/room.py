"""Whether what a run writes fits its disk, before it begins."""

from __future__ import annotations

import shutil
from pathlib import Path

from bon_server.errors import TrainingError
from bon_server.offline.training.defaults import parameters_of
from bon_server.offline.training.plan import Plan

_FULL_BYTES = 12
"""Of a checkpoint of a full fine-tune, for each parameter: the weight and Adam's two moments, in float32."""
_WHOLE_CHECKPOINTS = 3
"""Two are kept while the next is written."""


def check_room(out: Path, plan: Plan) -> None:
    """Raises TrainingError: too little. Low-rank updates are not counted: they are small beside the model."""
    needed_bytes = plan.files.weights_bytes
    if not plan.options.lora:
        needed_bytes += _WHOLE_CHECKPOINTS * _FULL_BYTES * parameters_of(plan.files)
    place = next(folder for folder in (out, *out.parents) if folder.exists())
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < needed_bytes:
        raise TrainingError(
            f"out: {out} needs about {needed_bytes >> 20} MiB for the model and its checkpoints, and its disk has"
            f" {free_bytes >> 20} MiB free"
        )

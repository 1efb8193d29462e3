"""A training run that kills itself with SIGKILL when a step's loss is told: before that step's checkpoint is written.

python killed_trainer.py FOLDER METHOD LAST_STEP
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import cast

from bon_server.offline.train.options import Method, TrainOptions
from bon_server.offline.train.train import Progress, train


def options_of(folder: Path, out: str, method: str, lora: bool) -> TrainOptions:
    """Nine steps of 24 rows, a checkpoint after every two."""
    data = folder / ("trl-dpo" if method == "dpo" else "trl-tokens")
    return TrainOptions(
        data=data,
        policy=folder / "policy",
        out=folder / out,
        method=cast(Method, method),
        lora=lora,
        batch_size=8,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        epochs=3,
        dtype="float32",
        save_steps=2,
    )


def _main(folder: Path, method: str, lora: bool, last_step: int) -> None:
    def die(done: Progress) -> None:
        if done.step == last_step:
            os.kill(os.getpid(), signal.SIGKILL)

    train(options_of(folder, "killed", method, lora), die)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "lora", int(sys.argv[4]))

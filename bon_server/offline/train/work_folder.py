"""Where a run works and what a killed one goes on from: a hidden sibling of the directory that will be the model.

    PARENT/.OUT.training/run.json                    what the run is of
                        /checkpoints/checkpoint-10/  of the trainer; whole once it holds `whole.json`
                        /new/                        the model directory, before it takes its name OUT
    PARENT/OUT/                                      appears whole, with `training.json` in it

On several devices the first process alone writes here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bon_server.core.errors import TrainingError
from bon_server.offline.differences import differences
from bon_server.system.files import sync_folder, sync_tree, whole_file
from bon_server.system.lock import WriterLock

RESULT_NAME = "training.json"
_RUN_NAME = "run.json"
_WHOLE_NAME = "whole.json"
_EARLIER_NAMES = {
    "micro_batch_size": "per_device_train_batch_size",
    "schedule": "lr_scheduler_type",
    "warmup_share": "warmup_ratio",
}


def finished(out: Path) -> dict[str, Any] | None:
    """`training.json` of the run that is finished in `out`; None: missing or empty.

    Raises TrainingError: `out` holds anything else.
    """
    try:
        if not any(out.iterdir()):
            return None
        document = dict(json.loads((out / RESULT_NAME).read_bytes()))
        if isinstance(document.get("run"), dict):
            return document | {"run": _with_names_of_today(document["run"])}
    except FileNotFoundError:
        if not out.exists():
            return None
    except NotADirectoryError:
        pass
    except (ValueError, TypeError) as error:
        raise TrainingError(f"out: {out / RESULT_NAME} cannot be read ({type(error).__name__})") from error
    raise TrainingError(f"out: {out} is not empty and holds no model that was trained here; give another directory")


def _with_names_of_today(run: dict[str, Any]) -> dict[str, Any]:
    """A run that an earlier version began, whose options had other names, is still the same run."""
    options = run.get("options")
    if not isinstance(options, dict):
        return run
    return run | {"options": {_EARLIER_NAMES.get(name, name): value for name, value in options.items()}}


def check_same(where: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises TrainingError, naming what differs, when a run is not the one that is wanted."""
    if different := differences(there, wanted):
        raise TrainingError(
            f"out: {where} holds another run ({'; '.join(different)}); give another directory, or remove it"
        )


class WorkFolder:
    """The hidden sibling of a directory."""

    def __init__(self, out: Path) -> None:
        self.out = Path(os.path.abspath(out))  # noqa: PTH100 -- a link stays a name: it is what is replaced
        self.path = self.out.parent / f".{self.out.name}.training"
        self.checkpoints = self.path / "checkpoints"
        self.new = self.path / "new"

    @contextmanager
    def held(self) -> Iterator[None]:
        """One run at a time. Raises LogLocked, naming the holder, while another one is here."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = WriterLock(self.path)
        try:
            yield
        finally:
            lock.release()

    def begin(self, run: dict[str, Any]) -> None:
        """Makes this the work folder of a run, or finds that it is. Raises TrainingError: it is of another run.

        Checkpoints that a killed run did not complete are removed.
        """
        there = self._run()
        if there is None:
            self._clear()
            with whole_file(self.path / _RUN_NAME) as file:
                file.write(json.dumps(run, indent=1).encode())
        else:
            check_same(self.path, there, json.loads(json.dumps(run)))
        self.checkpoints.mkdir(exist_ok=True)
        for path in self.checkpoints.iterdir():
            if not (path / _WHOLE_NAME).exists():
                shutil.rmtree(path)

    def _run(self) -> dict[str, Any] | None:
        try:
            return _with_names_of_today(dict(json.loads((self.path / _RUN_NAME).read_bytes())))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise TrainingError(f"out: {self.path / _RUN_NAME} cannot be read ({type(error).__name__})") from error

    def _clear(self) -> None:
        for folder in (self.checkpoints, self.new):
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)

    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint."""
        found = [
            (int(match[1]), path)
            for path in (self.checkpoints.iterdir() if self.checkpoints.exists() else ())
            if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / _WHOLE_NAME).exists()
        ]
        return max(found)[1] if found else None

    def complete(self, checkpoint: Path, seconds: float) -> None:
        """Says that a checkpoint is whole, once it is on disk. seconds: trained until then, in all runs."""
        sync_tree(checkpoint)
        with whole_file(checkpoint / _WHOLE_NAME) as file:
            file.write(json.dumps({"seconds": seconds}).encode())

    def publish(self) -> None:
        """`new` becomes the model directory, at once; nothing else is left."""
        sync_tree(self.new)
        with suppress(FileNotFoundError):
            self.out.rmdir()  # empty, or this is an error
        self.new.rename(self.out)
        sync_folder(self.out.parent)
        self.remove()

    def remove(self) -> None:
        """What is of no run any more is never gone on with, should this be cut off."""
        (self.path / _RUN_NAME).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)


def seconds_of(checkpoint: Path | None) -> float:
    """Trained until a whole checkpoint, in all runs; 0 without one."""
    return 0.0 if checkpoint is None else float(json.loads((checkpoint / _WHOLE_NAME).read_bytes())["seconds"])


def step_of(checkpoint: Path | None) -> int:
    """Optimiser steps done until then."""
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])

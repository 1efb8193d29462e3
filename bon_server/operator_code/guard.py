"""What an exception of the operator's code may tell: type, file and line. Its message may quote a completion."""

from __future__ import annotations

import traceback
from pathlib import Path


def place_of(error: BaseException) -> str:
    """`file.py:12`, where it was raised; `?` where that is not known."""
    if isinstance(error.__cause__, StopIteration):
        error = error.__cause__  # it could not leave a coroutine as it was
    try:
        frames = traceback.extract_tb(error.__traceback__, limit=-1)
    except Exception:  # noqa: BLE001 -- `__traceback__` can be of the operator's making
        return "?"
    return f"{Path(frames[0].filename).name}:{frames[0].lineno}" if frames else "?"


def told(error: BaseException) -> str:
    """`ValueError at file.py:12`, for a line of the log."""
    return f"{type(error).__name__} at {place_of(error)}"

"""A folder of parts that are done once, so that a long benchmark goes on where it was interrupted."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bon_server.core.errors import ConfigError
from bon_server.system.files import whole_file

Document = dict[str, Any]


class Work:
    """Parts by name, each a folder with what it made and, once it is whole, `done.json`."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """about: what decides the result of every part, kept in the folder.

        Raises ConfigError: the folder holds the parts of another run.
        """
        self.folder = folder
        self.seconds: dict[str, float] = {}
        """Of each part that was asked for, by the run that finished it."""
        folder.mkdir(parents=True, exist_ok=True)
        file, told = folder / "about.json", json.loads(json.dumps(about))
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            if found != told:
                differing = sorted(key for key in {*found, *told} if found.get(key) != told.get(key))
                raise ConfigError(
                    f"work: {folder} holds a run with other settings ({', '.join(differing)}); name another folder"
                )
        else:
            _write(file, told)

    def part(self, name: str, do: Callable[[Path], Document]) -> Path:
        """The folder of a part, after `do(folder)` has filled it, in this run or an earlier one.

        `do` gets the folder as an interrupted run left it, and returns what is to be kept of it in `done.json`.
        """
        folder = self.folder / name
        done = folder / "done.json"
        if not done.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _say(f"{name} …")
            began_at, began = time.time(), time.monotonic()
            result = do(folder)
            _write(done, {**result, "began_at": began_at, "seconds": round(time.monotonic() - began, 1)})
        self.seconds[name] = self.read(name)["seconds"]
        _say(f"{name}: {self.seconds[name]:.0f} s")
        return folder

    def elapsed_s(self) -> float:
        """Seconds in which a part that was asked for was being done: those of two at a time count once."""
        spans = sorted((told["began_at"], told["began_at"] + told["seconds"]) for told in map(self.read, self.seconds))
        total, until = 0.0, float("-inf")
        for begin, end in spans:
            total += max(0.0, end - max(begin, until))
            until = max(until, end)
        return round(total, 1)

    def read(self, name: str) -> Document:
        """What a finished part returned, and its `seconds`."""
        document: Document = json.loads((self.folder / name / "done.json").read_text(encoding="utf-8"))
        return document


def _write(file: Path, document: Document) -> None:
    with whole_file(file) as out:
        out.write((json.dumps(document, indent=2) + "\n").encode())


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)  # noqa: T201

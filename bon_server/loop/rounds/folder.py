"""The folder of a run: what is in it says how far the run is.

    DIR/options.json                    what was asked for; other options are refused
        rounds.json                     all figures so far, written anew after each round
        best                            a link to the policy of the best round
        round-00/                       the first policy: log, held-out.json, evaluation.json
        round-01/log/                   samples of the policy before (split=train), then of its own (split=held-out)
                 harvest.json           the first are all there
                 selected/              a training set, see `bon select`; finished once it has its manifest
                 policy/                what was trained on it, see `bon train`; appears whole
                 held-out.json          the second are all there
                 evaluation.json        what they say; the round is finished
                 server.log

Each step looks for its own result and is not done again when it is there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bon_server.core.errors import LogError
from bon_server.offline.differences import differences
from bon_server.offline.select.manifest import MANIFEST_NAME
from bon_server.system.files import make_folder, sync_folder, whole_file

OPTIONS_NAME, ROUNDS_NAME, BEST_NAME = "options.json", "rounds.json", "best"
HARVEST_NAME, HELD_OUT_NAME, EVALUATION_NAME, TRAINING_NAME = (
    "harvest.json",
    "held-out.json",
    "evaluation.json",
    "training.json",
)


@dataclass(frozen=True, slots=True)
class Round:
    """Where things of one round are."""

    number: int
    folder: Path

    @property
    def log(self) -> Path:
        """Samples of the policy before, and of its own."""
        return self.folder / "log"

    @property
    def selected(self) -> Path:
        """The training set."""
        return self.folder / "selected"

    @property
    def policy(self) -> Path:
        """What was trained on it."""
        return self.folder / "policy"

    @property
    def manifest(self) -> Path:
        """Of the training set, written last."""
        return self.selected / MANIFEST_NAME

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON document of the round; None: not there yet."""
        return read_json(self.folder / name)

    def write(self, name: str, document: dict[str, Any]) -> None:
        """Writes one, whole."""
        write_json(self.folder / name, document)


def round_of(out: Path, number: int) -> Round:
    """A round of a run, its folder made."""
    folder = out / f"round-{number:02d}"
    make_folder(folder)
    return Round(number, folder)


def fix_options(out: Path, asked: dict[str, Any]) -> None:
    """Keeps what a run is of. Raises `LogError`, naming what differs, when the folder holds another run."""
    there = read_json(out / OPTIONS_NAME)
    if there is None:
        if any(out.glob("round-*")):
            raise LogError(f"{out} holds rounds but no {OPTIONS_NAME}; choose another folder")
        write_json(out / OPTIONS_NAME, asked)
        return
    if different := differences(there, asked):
        raise LogError(f"{out} holds another run; {'; '.join(different)}. Choose another folder, or the same options")


def link_best(out: Path, policy: str) -> None:
    """Makes DIR/best a link to a policy's directory; a policy on the hub has none, and rounds.json names it."""
    best, fresh = out / BEST_NAME, out / f".{BEST_NAME}.tmp"
    directory = out / policy
    fresh.unlink(missing_ok=True)
    if not directory.is_dir():
        best.unlink(missing_ok=True)
        return
    inside = directory.resolve().is_relative_to(out.resolve())
    fresh.symlink_to(directory.resolve().relative_to(out.resolve()) if inside else directory.resolve())
    fresh.rename(best)
    sync_folder(out)


def read_json(path: Path) -> dict[str, Any] | None:
    """A document; None: not there. Raises `LogError` for what is none."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise LogError(f"{path} is not JSON ({type(error).__name__})") from error
    return dict(document)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes a document, whole."""
    with whole_file(path) as file:
        file.write(json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n")

"""Checkpoints in a watched folder: which are there, and whether one can take the place of the policy in use.

    FOLDER/step-100/          a model directory, or that of an adapter
    FOLDER/step-200/          a newer one: it wins
    FOLDER/current            optional, and then it alone decides: a link to a directory, or a file with its name

`checkpoints` reads names and times, never a model, and gives the newest first. `check_same_kind` compares a checkpoint
with the model in use: limits, stored prompts and the caller's idea of the model stay what they were, so only the
numbers in the weights may differ.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bon_server.core.errors import StartupError
from bon_server.models.weights import HUB_FILES, ModelFiles

POINTER = "current"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model directory as it was at one look."""

    directory: Path
    """Resolved: no link is in it."""
    signature: str
    """Changes whenever one of its files does: hex SHA-256 of names, places, sizes and times."""


def checkpoints(folder: Path) -> list[Checkpoint]:
    """Those in a folder, the newest first: the one that was changed last, or the one that `current` names.

    What has neither `config.json` nor `adapter_config.json` is none, nor is what has a name beginning with a dot. A
    folder that cannot be read has none.
    """
    try:
        pointed = _pointed(folder / POINTER)
        directories = _directories(folder) if pointed is None else [pointed]
    except OSError:
        return []
    found = []
    for directory in directories:
        with suppress(OSError, ValueError):  # it is just being removed, or what points to it holds no path
            found.append((_newest_ns(directory), directory.name, look_at(directory)))
    return [one for _, _, one in sorted(found, key=lambda each: each[:2], reverse=True)]


def look_at(directory: Path) -> Checkpoint:
    """The checkpoint as it is now. Raises OSError: it is not there, or neither a model nor an adapter."""
    directory = directory.resolve(strict=True)
    if not (directory / "config.json").exists():
        (directory / "adapter_config.json").stat()
    lines = []
    for path in _files(directory):
        status = path.stat()
        lines.append(
            f"{path.name} {status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        )
    return Checkpoint(directory, hashlib.sha256("\n".join(lines).encode()).hexdigest())


def _pointed(pointer: Path) -> Path | None:
    """Where the pointer points, there or not; None: there is no pointer."""
    if pointer.is_symlink() or pointer.is_dir():
        return pointer
    with suppress(OSError, UnicodeDecodeError):
        return pointer.parent / pointer.read_text(encoding="utf-8").strip()
    return None


def _directories(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir()]


def _files(directory: Path) -> list[Path]:
    """What a model is loaded from."""
    return sorted({path for pattern in HUB_FILES for path in directory.glob(pattern)})


def _newest_ns(directory: Path) -> int:
    """When the directory or one of its files was changed last, by the file system's clock.

    By the time of change, not of modification: copying tools preserve the latter, and a directory that is moved here
    is new here, whenever its files were written.
    """
    return max(os.stat(path).st_ctime_ns for path in (directory, *_files(directory)))  # noqa: PTH116 -- follows links


NOT_THE_ARCHITECTURE = {
    "_name_or_path",
    "bos_token_id",  # trainers copy the tokenizer's here
    "eos_token_id",
    "pad_token_id",
    "dtype",  # the engine keeps the one it has
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Keys of `config.json` that may differ."""
NOT_WEIGHTS = ("rotary_emb.inv_freq",)
"""Endings of names of what some files carry and every engine computes for itself."""
FLOATS = {"F64", "F32", "F16", "BF16"}
"""Formats of safetensors that the engine converts into its own."""


def check_same_kind(serving: ModelFiles, found: ModelFiles) -> None:
    """Compares configuration, and names, shapes and formats of the weights. Raises StartupError at a difference."""
    ours, theirs = _architecture(serving.config), _architecture(found.config)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise StartupError(
                f"model {found.directory}: config.json says {key} = {_short(theirs.get(key))}, "
                f"the policy in use has {_short(ours.get(key))}"
            )
    _check_tensors(serving, found)


def _check_tensors(serving: ModelFiles, found: ModelFiles) -> None:
    tied = bool(_architecture(serving.config).get("tie_word_embeddings"))
    ours, theirs = _weights(serving, tied), _weights(found, tied)
    for names, what in ((ours - theirs, "lacks"), (theirs - ours, "has, unlike the policy in use,")):
        if names:
            raise StartupError(f"model {found.directory}: it {what} the weight {min(names)} ({len(names)} such)")
    for name in sorted(ours):
        if serving.shapes[name] != found.shapes[name]:
            raise StartupError(
                f"model {found.directory}: the weight {name} has the shape {list(found.shapes[name])}, "
                f"in the policy in use {list(serving.shapes[name])}"
            )
        formats = {serving.formats[name], found.formats[name]}
        if len(formats) > 1 and not formats <= FLOATS:
            raise StartupError(
                f"model {found.directory}: the weight {name} has the format {found.formats[name]}, "
                f"in the policy in use {serving.formats[name]}"
            )


def _weights(files: ModelFiles, tied: bool) -> set[str]:
    """Names that count: a tied output layer is the embedding again, and some files hold it twice."""
    return {
        name
        for name in files.shapes
        if not name.endswith(NOT_WEIGHTS) and not (tied and name.endswith("lm_head.weight"))
    }


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """As transformers reads it, which fills in defaults and knows older spellings; else as it stands there."""
    from transformers import CONFIG_MAPPING

    read = dict(config)
    if config.get("model_type") in CONFIG_MAPPING:
        read = CONFIG_MAPPING[config["model_type"]].from_dict(read).to_dict()
    return {key: value for key, value in read.items() if key not in NOT_THE_ARCHITECTURE}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"

"""The manifest of a selection: what was asked, what was read, what was written. The last file to appear.

It holds no times and no machine names, so the same selection of the same log has the same manifest, byte for byte.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NotRequired, TypedDict

import msgspec

from bon_server.errors import LogError
from bon_server.log.whole_file import sha256_of as sha256_of
from bon_server.log.whole_file import whole_file

MANIFEST_NAME = "manifest.json"


class Filters(TypedDict):
    """What was left out before choosing, and what was chosen within."""

    keep_truncated: bool
    """Whether candidates that ended at `max_tokens` could be chosen."""
    kinds: list[str]
    """Kinds of records that were chosen from."""
    merge: bool
    """Whether requests of one prompt were merged."""
    reward_model: str | None
    """The only reward model whose rewards count, as `ID` or `ID@REVISION`; null: there must be only one."""


class Counts(TypedDict):
    """`candidates` = `eligible` + the sum of `dropped`."""

    requests: int
    """Records read."""
    prompts: int
    """Prompts among them."""
    candidates: int
    eligible: int
    """Candidates that the rule chose from."""
    dropped: dict[str, int]
    """Candidates left out before choosing, by reason."""
    selected: int


class Input(TypedDict):
    """A file that was read, as far as it was read."""

    file: str
    rows: int
    sha256: str
    """Of a segment: of the file. Of a spool: of its records (the `record` column) in ordinal order, up to
    `last_ordinal`."""
    last_ordinal: int


class Output(TypedDict):
    """A file that was written."""

    file: str
    role: str
    """`data` or `meta`."""
    rows: int
    sha256: str
    prompts: NotRequired[str]
    """Of data: the form of its prompts, `chat` or `text`; a file holds one form, as TRL wants it."""


class Manifest(TypedDict):
    """`manifest.json`, also printed by `bon select --json`."""

    rule: str
    format: str
    seed: int
    """Of a control's draw; the other rules ignore it."""
    k: int | None
    filters: Filters
    counts: Counts
    inputs: list[Input]
    snapshot: NotRequired[str]
    """Name of the snapshot, of each log, that `inputs` are; not there when all of a log was read."""
    outputs: list[Output]
    policies: list[dict[str, str]]
    """Policies of the eligible candidates: `id` and `revision`."""
    reward_models: list[dict[str, str]]
    """Whose rewards were compared: `name`, `id` and `revision`."""
    version: str
    """Of the program that wrote it."""


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a folder, None when there is none. Raises `LogError` for a file that is no manifest."""
    path = folder / MANIFEST_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise LogError(f"{path} is not the manifest of a selection: {error}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest whole."""
    with whole_file(folder / MANIFEST_NAME) as file:
        file.write(json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n")

"""The manifest of a selection: what was asked, what was read, what was written. The last file to appear.

It holds no times and no machine names, so the same selection of the same log has the same manifest, byte for byte.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import msgspec

from bon_server.core.errors import LogError
from bon_server.system.files import whole_file

MANIFEST_NAME = "manifest.json"


class Counts(TypedDict):
    """`candidates` = `eligible` + the sum of `dropped`. Of requests within `since` and `until`; others are not read."""

    requests: int
    """Records read."""
    prompts: int
    """Prompts among them."""
    candidates: int
    eligible: int
    """Candidates that the rule chose from."""
    dropped: dict[str, int]
    """Candidates left out before choosing, by reason; the reasons are in `eligible.py`."""
    selected: int
    """Candidates chosen; of pairs, chosen and rejected ones."""


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


class ManifestPolicy(TypedDict):
    """Who sampled, and with which share."""

    id: str
    revision: str
    candidates: int
    """That each passed the filters which look at one candidate."""
    selected: int
    share: float
    """Of all that were selected, 0 to 1."""


class ManifestRewardModel(TypedDict):
    """Whose rewards were compared."""

    name: str
    id: str
    revision: str
    mean: NotRequired[float]
    """With `normalise`: what was taken from its rewards."""
    deviation: NotRequired[float]
    """With `normalise`: what they were divided by."""


class Manifest(TypedDict):
    """`manifest.json`, also printed by `bon select --json`."""

    rule: str
    format: str
    seed: int
    """Of random draws; rules without any ignore it."""
    k: int | None
    parameters: dict[str, Any]
    """Of the rule, the others but `k`; see `rules.Rule`."""
    filters: dict[str, Any]
    """See `options.Filters`."""
    written: dict[str, Any]
    """See `options.Written`."""
    counts: Counts
    inputs: list[Input]
    snapshot: NotRequired[str]
    """Name of the snapshot, of each log, that `inputs` are; not there when all of a log was read."""
    outputs: list[Output]
    policies: list[ManifestPolicy]
    reward_models: list[ManifestRewardModel]
    audit: dict[str, Any] | None
    """Tokens of the selected: `cut` have more than `max_length`, of `unknown` it is not known."""
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

"""What an import is asked for, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bon_server.core.errors import ConfigError
from bon_server.offline.importing import formats
from bon_server.offline.importing.line import Fields, ImportLine, Reading


class ImportFormat(NamedTuple):
    """How a format is read."""

    read: Callable[[Fields, Reading], ImportLine]
    """Raises `BadLine`."""
    line_per_candidate: bool


IMPORT_FORMATS = {
    "grouped": ImportFormat(formats.read_grouped, line_per_candidate=False),
    "openrlhf": ImportFormat(formats.read_openrlhf, line_per_candidate=True),
    "trl-grpo": ImportFormat(formats.read_trl_grpo, line_per_candidate=True),
    "open-instruct": ImportFormat(formats.read_open_instruct, line_per_candidate=True),
    "verl": ImportFormat(formats.read_verl, line_per_candidate=True),
}


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What to import, and where to."""

    files: tuple[Path, ...]
    """JSON lines or Parquet; one data set, in this order."""
    log: Path
    """Made when missing; no server may be writing it."""
    format: str = "grouped"
    reward_model: str | None = None
    """Names the source of the rewards; None: the reward model that the lines name, or else a digest of the files."""
    raw: bool = False
    """A plain-string prompt is a text to be continued, not one user message of a chat."""
    reward_columns: Mapping[str, float] | None = None
    """Columns whose weighted sum is the reward; None: what the format takes for it."""
    rejected: Path | None = None
    """Where lines that cannot be imported are reported; None: a file in LOG/rejected."""


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What became of the lines: `lines` = `imported` + `already_there` + `rejected`."""

    lines: int
    """Lines, or rows, that are not blank."""
    imported: int
    already_there: int
    rejected: int
    requests: int
    """Records made of the imported lines."""
    candidates: int
    """Candidates in them."""
    scored: int
    """Those with a reward."""
    rejected_file: str | None
    """Where the rejected lines are, with reasons; None: none were."""
    ignored_keys: dict[str, int]
    """Keys that are not in the log, with the number of lines that had them."""
    reward_model: str
    """The name given to the source of the rewards where the lines name none."""


def parse_columns(columns: Sequence[str]) -> dict[str, float]:
    """`["acc", "format=0.2"]` → `{"acc": 1.0, "format": 0.2}`, as `--reward-column` gives them."""
    weights = {}
    for column in columns:
        name, separator, weight = column.rpartition("=")
        try:
            weights[name if separator else column] = float(weight) if separator else 1.0
        except ValueError:
            raise ConfigError(f"reward column {column!r} is not of the form NAME or NAME=WEIGHT") from None
    return weights


def check(options: ImportOptions) -> None:
    """Raises `ConfigError` for options that there are not, or that do not go together."""
    if options.format not in IMPORT_FORMATS:
        raise ConfigError(f"format: {options.format!r} given; allowed are {', '.join(IMPORT_FORMATS)}")
    if not options.files:
        raise ConfigError("files: none given; at least one is needed")
    if options.rejected is not None and options.rejected.resolve() in [file.resolve() for file in options.files]:
        raise ConfigError(f"rejected: {str(options.rejected)!r} given, which is to be imported")
    columns = options.reward_columns
    if columns is not None and (options.format == "grouped" or not columns):
        raise ConfigError(f"reward columns: {len(columns)} given; formats with a line per candidate take one or more")
    for name, weight in (columns or {}).items():
        if not math.isfinite(weight):
            raise ConfigError(f"reward column {name!r}: weight {weight} given; it must be finite")

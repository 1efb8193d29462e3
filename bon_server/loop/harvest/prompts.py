"""Where prompts come from: JSON lines, Parquet, or a folder that `datasets` saved; read as a stream, a batch at a time.

    FILE                  JSON lines, or Parquet (known by its first bytes)
    FOLDER/*.parquet      the shards of one table, in the order of their names
    FOLDER/state.json     what `Dataset.save_to_disk` wrote

`Columns` says which column of a row gives which part of a request. Only the columns that a run needs are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from bon_server.core.errors import ConfigError

PARTS = ("prompt", "id", "reward_context", "tags")
LABELS = ("reward_context", "tags")


class BadPromptLine(ValueError):
    """A line that is no request; the message says what is wrong, without its content."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the parts of a request are. A part that is not named is in the column of its own name, if there is one."""

    named: tuple[tuple[str, str], ...] = ()
    """(part, column): a part is one of `PARTS`, or one label such as `tags.split`. A column is given by its name, or by
    a path into it, such as `extra.answer`; empty: this part is left out."""

    def take(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The parts that a row has; nulls count as missing. Raises `BadPromptLine` when a named column has nothing."""
        named = dict(self.named)
        parts = {part: _without_nulls(row[part]) for part in PARTS if part not in named and row.get(part) is not None}
        for part, column in sorted(self.named):  # a whole comes before its labels
            if column:
                _put(parts, part, _find(row, column))
        return parts

    def needed(self, present: Collection[str], what: object) -> list[str]:
        """Which of the columns that are present to read. Raises `ConfigError` when one that is needed is not there."""
        named = dict(self.named)
        needed = {part for part in PARTS if part not in named and part in present}
        for column in [*filter(None, named.values()), *(["prompt"] if "prompt" not in named else [])]:
            top = column if column in present else column.partition(".")[0]
            if top not in present:
                raise ConfigError(
                    f"{what} has no column {column!r}; it has {', '.join(sorted(present))} (see --column)"
                )
            needed.add(top)
        return sorted(needed)


def parse_columns(texts: Iterable[str]) -> Columns:
    """From `PART=COLUMN` each. Raises `ConfigError`."""
    named: dict[str, str] = {}
    for text in texts:
        part, separator, column = text.partition("=")
        label, dot, name = part.partition(".")
        if not separator or not (part in PARTS or (label in LABELS and dot and name)):
            allowed = "prompt, id, reward_context, reward_context.NAME, tags, tags.NAME"
            raise ConfigError(f"--column {text!r}: expected PART=COLUMN with PART one of {allowed}")
        if part in named:
            raise ConfigError(f"--column {text!r}: {part} is already given as {named[part]!r}")
        if not column and part not in ("id", *LABELS):
            raise ConfigError(f"--column {text!r}: only id, reward_context and tags can be left out")
        named[part] = column
    return Columns(tuple(sorted(named.items())))


def _put(parts: dict[str, Any], part: str, value: Any) -> None:
    label, dot, name = part.partition(".")
    if dot:
        whole = parts.get(label, {})
        if not isinstance(whole, dict):
            raise BadPromptLine(f"{label}: an object of strings is allowed")
        parts[label] = whole | {name: _text(part, value)}
    else:
        parts[part] = _text(part, value) if part == "id" else value


def _find(row: Mapping[str, Any], column: str) -> Any:
    value: Any = row.get(column)
    if column not in row:
        value = row
        for step in column.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
    if value is None:
        raise BadPromptLine(f"{column}: there is nothing in this column")
    return _without_nulls(value)


def _text(part: str, value: Any) -> str:
    """A string as it is, anything else as JSON."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError):
        raise BadPromptLine(f"{part}: a value of type {type(value).__name__} has no text") from None


def _without_nulls(value: Any) -> Any:
    """Without the keys of objects that are null: a table gives every row all keys that any row has."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


BATCH_ROWS = 64
_PARQUET_MAGIC = b"PAR1"
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.parquet")


class FileForm(StrEnum):
    """How rows lie in the files."""

    JSON_LINES = "JSON lines"
    PARQUET = "Parquet"
    ARROW = "datasets"


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One row, or one line that is not blank."""

    number: int
    """From 1; blank lines count."""
    content: bytes | Mapping[str, Any] | BadPromptLine
    """JSON, or the columns of a table; what is wrong with a row that cannot be read."""
    size_bytes: float
    """Its share of the files, for a progress bar."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """The files of one source of prompts."""

    form: FileForm
    files: tuple[Path, ...]

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.stat().st_size for file in self.files)

    def lines(self, columns: Columns) -> Iterator[PromptLine]:
        """All rows in order. Raises OSError, and `ConfigError` for a file that is damaged or lacks a column."""
        number = 0
        for file in self.files:
            read = {FileForm.JSON_LINES: _json_lines, FileForm.PARQUET: _parquet_rows, FileForm.ARROW: _arrow_rows}[
                self.form
            ]
            for content, size_bytes in read(file, columns):
                number += 1
                if not isinstance(content, bytes) or content.strip():
                    yield PromptLine(number, content, size_bytes)


_Rows = Iterator[tuple[bytes | Mapping[str, Any] | BadPromptLine, float]]


def find_prompts(path: Path) -> Prompts:
    """What there is at a path. Raises OSError, and `ConfigError` for a folder that holds no single table."""
    if not path.is_dir():
        with path.open("rb") as file:
            is_parquet = file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
        return Prompts(FileForm.PARQUET if is_parquet else FileForm.JSON_LINES, (path,))
    if (path / "state.json").exists():
        return Prompts(FileForm.ARROW, _saved_files(path))
    if (path / "dataset_dict.json").exists():
        splits = ", ".join(sorted(str(path / one.parent.name) for one in path.glob("*/state.json")))
        raise ConfigError(f"{path} holds several splits; name one of {splits}")
    shards = tuple(sorted(path.glob("*.parquet")))
    if not shards:
        raise ConfigError(f"{path} is a folder without *.parquet files, and nothing that datasets saved")
    tables = sorted({match[1] for shard in shards if (match := _SHARD.fullmatch(shard.name))})
    if len(tables) > 1:
        raise ConfigError(
            f"{path} holds shards of several tables: {', '.join(tables)}; put one into a folder of its own"
        )
    return Prompts(FileForm.PARQUET, shards)


def _saved_files(folder: Path) -> tuple[Path, ...]:
    try:
        state = json.loads((folder / "state.json").read_bytes())
        files = tuple(folder / one["filename"] for one in state["_data_files"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder}/state.json is not what datasets writes ({type(error).__name__})") from error
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise ConfigError(f"{folder} was saved with an index by an old version of datasets; load and save it again")
    return files


def _json_lines(file: Path, columns: Columns) -> _Rows:
    with file.open("rb") as stream:
        for content in stream:
            yield content, len(content)


def _parquet_rows(file: Path, columns: Columns) -> _Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            needed = columns.needed(table.schema_arrow.names, file)
            row_bytes = file.stat().st_size / max(1, table.metadata.num_rows)
            for batch in table.iter_batches(BATCH_ROWS, columns=needed):
                yield from _batch_rows(batch, row_bytes)
    except pa.ArrowException as error:
        raise ConfigError(f"{file} is not Parquet that can be read ({type(error).__name__})") from error


def _arrow_rows(file: Path, columns: Columns) -> _Rows:
    import pyarrow as pa

    try:
        with pa.memory_map(str(file)) as memory:
            rows = sum(batch.num_rows for batch in pa.ipc.open_stream(memory))
            memory.seek(0)
            reader = pa.ipc.open_stream(memory)
            needed = columns.needed(reader.schema.names, file)
            for batch in reader:
                yield from _batch_rows(batch.select(needed), file.stat().st_size / max(1, rows))
    except pa.ArrowException as error:
        raise ConfigError(f"{file} is not an Arrow file that can be read ({type(error).__name__})") from error


def _batch_rows(batch: Any, row_bytes: float) -> _Rows:
    for position in range(batch.num_rows):
        try:
            (row,) = batch.slice(position, 1).to_pylist(maps_as_pydicts="lossy")
        except (ValueError, OverflowError) as error:  # strings in Parquet need not be UTF-8
            row = BadPromptLine(f"not a row that can be read ({type(error).__name__})")
        yield row, row_bytes

"""Which column of a row gives which part of a request."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bon_server.errors import ConfigError

PARTS = ("prompt", "id", "reward_context", "tags")
LABELS = ("reward_context", "tags")


class BadLine(ValueError):
    """A line that is no request; the message says what is wrong, without its content."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the parts of a request are. A part that is not named is in the column of its own name, if there is one."""

    named: tuple[tuple[str, str], ...] = ()
    """(part, column): a part is one of `PARTS`, or one label such as `tags.split`. A column is given by its name, or by
    a path into it, such as `extra.answer`; empty: this part is left out."""

    def take(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The parts that a row has; nulls count as missing. Raises `BadLine` when a named column has nothing."""
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
            raise BadLine(f"{label}: an object of strings is allowed")
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
        raise BadLine(f"{column}: there is nothing in this column")
    return _without_nulls(value)


def _text(part: str, value: Any) -> str:
    """A string as it is, anything else as JSON."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError):
        raise BadLine(f"{part}: a value of type {type(value).__name__} has no text") from None


def _without_nulls(value: Any) -> Any:
    """Without the keys of objects that are null: a table gives every row all keys that any row has."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value

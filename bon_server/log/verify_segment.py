"""Every row of a segment, and what is wrong with its row groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from bon_server.errors import LogError
from bon_server.log.columns import SCHEMA, leaves
from bon_server.log.record import Record
from bon_server.log.rows import from_batch
from bon_server.log.segment_reader import Part
from bon_server.log.segments import naming, open_parquet, row_group_range

_WITH_STATISTICS = ("ordinal", "created_at", "request_id")


@dataclass(frozen=True, slots=True)
class RowGroup:
    """What was found in one row group, or of a file that has none."""

    rows: list[tuple[int, Record | LogError]] = field(default_factory=list)
    """Ordinals, each with its record or why it is none."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Kinds and details."""


def segment_rows(part: Part) -> Iterator[RowGroup]:
    """The row groups of a segment, in the file's order."""
    try:
        parquet = open_parquet(part.path)
    except LogError as error:
        yield RowGroup(problems=[("segment_unreadable", str(error))])
        return
    with closing(parquet):
        for group in range(parquet.metadata.num_row_groups):
            try:
                with naming(part.path, f": row group {group}"):
                    table = parquet.read_row_group(group, columns=leaves(SCHEMA))
                    yield RowGroup(_rows(part, table), list(_statistics(parquet, group, table)))
            except LogError as error:
                yield RowGroup(problems=[("segment_unreadable", str(error))])


def _rows(part: Part, table: Any) -> list[tuple[int, Record | LogError]]:
    rows: list[tuple[int, Record | LogError]] = []
    for batch in table.combine_chunks().to_batches():
        try:
            rows += from_batch(batch, Record)
        except (msgspec.MsgspecError, ValueError):
            rows += [_row(part, batch.slice(place, 1)) for place in range(batch.num_rows)]
    return rows


def _row(part: Part, row: Any) -> tuple[int, Record | LogError]:
    try:
        return from_batch(row, Record)[0]
    except (msgspec.MsgspecError, ValueError) as error:
        ordinal = row.column("ordinal").to_pylist()[0] or 0
        return ordinal, LogError(f"{part.path}: row {ordinal} is not a record ({type(error).__name__})")


def _statistics(parquet: Any, group: int, table: Any) -> Iterator[tuple[str, str]]:
    for column in _WITH_STATISTICS:
        said = row_group_range(parquet, group, column)
        values = [value for value in table[column].to_pylist() if value is not None]
        if said is None or not values:
            yield "statistics", f"row group {group} has none of {column!r}"
        elif tuple(map(_comparable, said)) != (_comparable(min(values)), _comparable(max(values))):
            yield "statistics", f"row group {group}: those of {column!r} are not those of its rows"


def _comparable(value: Any) -> Any:
    return value.timestamp() if isinstance(value, datetime) else value

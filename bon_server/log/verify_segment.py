"""Every row of a segment, and what is wrong with its row groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec
import pyarrow as pa

from bon_server.errors import LogError
from bon_server.log.columns import leaves
from bon_server.log.record import Record
from bon_server.log.rows import from_batch
from bon_server.log.segment_reader import Part
from bon_server.log.segments import naming, open_parquet, row_group_range

_WITH_STATISTICS = ("ordinal", "created_at", "request_id")
One = TypeVar("One")


def to_records(batch: pa.RecordBatch) -> list[tuple[int, Record]]:
    """Ordinals and records of a batch of a segment."""
    return from_batch(batch, Record)


@dataclass(frozen=True, slots=True)
class RowGroup(Generic[One]):
    """What was found in one row group, or of a file that has none."""

    rows: list[tuple[int, One | LogError]] = field(default_factory=list)
    """Ordinals, each with what the row holds or why it holds nothing."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Kinds and details."""


def segment_rows(
    part: Part, schema: pa.Schema, convert: Callable[[pa.RecordBatch], list[tuple[int, One]]]
) -> Iterator[RowGroup[One]]:
    """The row groups of a segment, in the file's order; `convert` makes of rows what they hold."""
    try:
        parquet = open_parquet(part.path)
    except LogError as error:
        yield RowGroup(problems=[("segment_unreadable", str(error))])
        return
    with closing(parquet):
        for group in range(parquet.metadata.num_row_groups):
            try:
                with naming(part.path, f": row group {group}"):
                    table = parquet.read_row_group(group, columns=leaves(schema))
                    yield RowGroup(_rows(part, table, convert), list(_statistics(parquet, group, table)))
            except LogError as error:
                yield RowGroup(problems=[("segment_unreadable", str(error))])


def _rows(
    part: Part, table: Any, convert: Callable[[pa.RecordBatch], list[tuple[int, One]]]
) -> list[tuple[int, One | LogError]]:
    rows: list[tuple[int, One | LogError]] = []
    for batch in table.combine_chunks().to_batches():
        try:
            rows += convert(batch)
        except (msgspec.MsgspecError, ValueError):
            for place in range(batch.num_rows):
                row = _row(part, batch.slice(place, 1), convert)
                rows.append(row)
    return rows


def _row(
    part: Part, row: Any, convert: Callable[[pa.RecordBatch], list[tuple[int, One]]]
) -> tuple[int, One | LogError]:
    try:
        return convert(row)[0]
    except (msgspec.MsgspecError, ValueError) as error:
        ordinal = row.column("ordinal").to_pylist()[0] or 0
        return ordinal, LogError(f"{part.path}: row {ordinal} cannot be read ({type(error).__name__})")


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

"""Arrow batches back to records, or to smaller types with some of a record's fields.

Column by column rather than row by row: most of a record is token ids, and lists of numbers become Python lists many
times faster as a whole than value by value.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
import pyarrow as pa
from msgspec import inspect

from bon_server.log.columns import SCHEMA, is_mapping, prune

Fields = TypeVar("Fields")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def schema_for(some_fields: type[Any]) -> pa.Schema:
    """The columns that a dataclass or Struct needs, and `ordinal`; fields that are no columns are left out."""
    return prune({"ordinal", *_names(inspect.type_info(some_fields), SCHEMA)})


def from_batch(batch: pa.RecordBatch, some_fields: type[Fields]) -> list[tuple[int, Fields]]:
    """(rows,) ordinals and objects, in ordinal order. Raises `msgspec.ValidationError` for rows that are no records."""
    names = batch.schema.names
    ordinals: list[int] = _values(batch.column("ordinal"))
    rows = zip(*(_values(column) for column in batch.columns), strict=True)
    objects = [msgspec.convert(dict(zip(names, row, strict=True)), some_fields) for row in rows]
    return sorted(zip(ordinals, objects, strict=True), key=lambda pair: pair[0])


def _names(of: inspect.Type, columns: Any) -> Iterator[str]:
    """Dotted names of the columns, among `columns`, that a type has fields for."""
    types = {field.name: field.type for field in columns}
    if not isinstance(of, inspect.DataclassType | inspect.StructType):
        raise TypeError(f"{of} has no fields")
    for field in of.fields:
        if field.encode_name in types:
            parts = _inside(field.type)
            column = types[field.encode_name]
            inner = column.value_type if pa.types.is_list(column) else column
            if parts is None or not pa.types.is_struct(inner):
                yield field.encode_name
            else:
                yield from (f"{field.encode_name}.{name}" for name in _names(parts, inner))


def _inside(of: inspect.Type) -> inspect.DataclassType | inspect.StructType | None:
    """The dataclass or Struct that a field holds one or many of."""
    if isinstance(of, inspect.UnionType):
        return next((inner for inner in map(_inside, of.types) if inner is not None), None)
    if isinstance(of, inspect.ListType | inspect.VarTupleType):
        return _inside(of.item_type)
    return of if isinstance(of, inspect.DataclassType | inspect.StructType) else None


def _values(array: pa.Array) -> list[Any]:
    """What `to_pylist` gives, with mappings as dicts and times in `datetime.UTC`."""
    if pa.types.is_list(array.type):
        return _lists(array)
    if pa.types.is_struct(array.type):
        return _structs(array)
    if pa.types.is_timestamp(array.type):
        microseconds = array.cast(pa.int64()).to_pylist()
        return [None if us is None else _EPOCH + timedelta(microseconds=us) for us in microseconds]
    if array.null_count == 0 and (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        numbers: list[Any] = array.to_numpy(zero_copy_only=False).tolist()
        return numbers
    values: list[Any] = array.to_pylist()
    return values


def _lists(array: pa.ListArray) -> list[Any]:
    inner = _values(array.flatten())
    lists: list[Any] = []
    start = 0
    for length in array.value_lengths().to_pylist():
        if length is None:
            lists.append(None)
        else:
            lists.append(inner[start : start + length])
            start += length
    if not is_mapping(array.type):
        return lists
    return [None if one is None else {entry["key"]: entry["value"] for entry in one} for one in lists]


def _structs(array: pa.StructArray) -> list[Any]:
    names = [field.name for field in array.type]
    rows = zip(*(_values(array.field(name)) for name in names), strict=True)
    structs: list[Any] = [dict(zip(names, row, strict=True)) for row in rows]
    if array.null_count:
        return [one if valid else None for one, valid in zip(structs, array.is_valid().to_pylist(), strict=True)]
    return structs

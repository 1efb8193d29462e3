"""The columns of a segment: the Arrow schema of a record, records as Arrow batches, and batches back to records.

    Record.candidates   list<struct>        one row per request, every candidate inside it
    tags, rewards, …    list<struct<key, value>>, because not every reader of Parquet has maps (`datasets` has none)
    times               timestamp[us, UTC]; durations are int64 nanoseconds
    enums               their values as strings
    null                the field is unset; an empty list is something else and stays one

Columns are only ever added. A reader ignores those it does not know, and gives those that an older file lacks their
defaults; `schema_version` in the file's metadata says which there are.

Batches become records, or smaller types with some of a record's fields, column by column rather than row by row: most
of a record is token ids, and lists of numbers become Python lists many times faster as a whole than value by value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
import pyarrow as pa
from msgspec import inspect

from bon_server.core.errors import ConfigError
from bon_server.log.record import SCHEMA_VERSION, Record

MODEL = pa.struct([("name", pa.string()), ("id", pa.string()), ("revision", pa.string())])
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
POLICY = pa.struct([("id", pa.string()), ("revision", pa.string()), ("chat_template_hash", pa.string())])
TOKEN_IDS = pa.list_(pa.int32())
TEXTS = pa.list_(pa.string())
TAGS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())]))
REWARDS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.float64())]))

SAMPLING = pa.struct(
    [
        ("temperature", pa.float64()),
        ("max_tokens", pa.int64()),
        ("top_p", pa.float64()),
        ("min_p", pa.float64()),
        ("top_k", pa.int64()),
        ("presence_penalty", pa.float64()),
        ("frequency_penalty", pa.float64()),
        ("repetition_penalty", pa.float64()),
        ("seed", pa.int64()),
        ("stop", TEXTS),
        ("stop_token_ids", TOKEN_IDS),
        ("json_schema", pa.string()),
        ("regex", pa.string()),
        ("choice", TEXTS),
    ]
)
BUDGET = pa.struct(
    [
        ("stop_at_reward", pa.float64()),
        ("price_per_candidate", pa.float64()),
        ("min_n", pa.int64()),
        ("prune_fraction", pa.float64()),
        ("prune_after_tokens", pa.int64()),
    ]
)
TIMINGS = pa.struct(
    [("queue", pa.int64()), ("sample", pa.int64()), ("score", pa.int64()), ("overlap_ratio", pa.float64())]
)
CANDIDATE = pa.struct(
    [
        ("index", pa.int32()),
        ("text", pa.string()),
        ("token_ids", TOKEN_IDS),
        ("logprob", pa.float64()),
        ("logprob_kind", pa.string()),
        ("finish_reason", pa.string()),
        ("stop_reason", pa.string()),
        ("completion_tokens", pa.int64()),
        ("seed", pa.int64()),
        ("reward", pa.float64()),
        ("rewards", REWARDS),
        ("status", pa.string()),
        ("error", pa.string()),
        ("policy_revision", pa.string()),
        ("sampled_ns", pa.int64()),
        ("scored_ns", pa.int64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("schema_version", pa.int32()),
        ("request_id", pa.string()),
        ("attempt", pa.int32()),
        ("request_digest", pa.string()),
        ("principal", pa.string()),
        ("kind", pa.string()),
        ("outcome", pa.string()),
        ("ordinal", pa.int64()),
        ("created_at", pa.timestamp("us", tz="UTC")),
        ("prompt_hash", pa.string()),
        ("prompt_text", pa.string()),
        ("prompt_messages", pa.list_(MESSAGE)),
        ("prompt_token_ids", TOKEN_IDS),
        ("policy", POLICY),
        ("reward_models", pa.list_(MODEL)),
        ("sampling", SAMPLING),
        ("n", pa.int32()),
        ("budget", BUDGET),
        ("rule", pa.string()),
        ("selection_reason", pa.string()),
        ("selection_temperature", pa.float64()),
        ("selection_seed", pa.int64()),
        ("selected_index", pa.int32()),
        ("reward_context", TAGS),
        ("tags", TAGS),
        ("timings", TIMINGS),
        ("candidates", pa.list_(CANDIDATE)),
        ("reward_model_tokens", pa.int64()),
        ("error", pa.string()),
        ("content_logged", pa.bool_()),
    ],
    metadata={"schema_version": str(SCHEMA_VERSION)},
)
"""Row of a segment: the fields of `Record`, by their names."""


def is_mapping(of: pa.DataType) -> bool:
    """Whether a column of this type holds mappings, as lists of keys with values."""
    return bool(of.equals(TAGS) or of.equals(REWARDS))


def to_batch(records: Sequence[Record], schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    """(len(records),) rows in the given order, with the columns of `schema`, see `prune`.

    Raises ValueError, without content, for a record that does not fit the columns: a number over 64 bits, a token id
    over 31.
    """
    rows = [_row(record) for record in records]
    try:
        return pa.RecordBatch.from_pylist(rows, schema=schema)
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"a record does not fit the columns of a segment ({type(error).__name__})") from None


def _row(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.to_builtins(record, builtin_types=(datetime,))
    row["tags"] = _entries(row["tags"])
    row["reward_context"] = _entries(row["reward_context"])
    for candidate in row["candidates"]:
        candidate["rewards"] = _entries(candidate["rewards"])
    return row


def _entries(mapping: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": value} for key, value in mapping.items()]


def prune(names: Collection[str]) -> pa.Schema:
    """The part of the schema with these columns, in the schema's order.

    A name is a column (`candidates`) or a part of one (`candidates.reward`). Raises `ConfigError` for another name.
    """
    for name in names:
        _check(name)
    return pa.schema(list(_pruned(SCHEMA, _tree(names))), metadata=SCHEMA.metadata)


def leaves(schema: pa.Schema) -> list[str]:
    """The paths under which a Parquet file holds the columns of a schema."""
    return [path for field in schema for path in _paths(field.name, field.type)]


def _check(name: str) -> None:
    fields: Mapping[str, pa.DataType] = {field.name: field.type for field in SCHEMA}
    for part in name.split("."):
        if part not in fields:
            raise ConfigError(f"column: {name!r} given; allowed here are {', '.join(fields) or 'no parts'}")
        fields = {} if is_mapping(fields[part]) else _parts(fields[part])


def _parts(of: pa.DataType) -> dict[str, pa.DataType]:
    inner = of.value_type if pa.types.is_list(of) else of
    return {field.name: field.type for field in inner} if pa.types.is_struct(inner) else {}


Tree = dict[str, "Tree"]


def _tree(names: Collection[str]) -> Tree:
    """Names by their first part; an empty tree is a whole column."""
    tree: Tree = {}
    for first in {name.partition(".")[0] for name in names}:
        whole = first in names
        tree[first] = {} if whole else _tree([name[len(first) + 1 :] for name in names if name.startswith(f"{first}.")])
    return tree


def _pruned(fields: Any, tree: Tree) -> Iterator[pa.Field]:
    for field in fields:
        parts = tree.get(field.name)
        if parts is not None:
            yield field.with_type(_pruned_type(field.type, parts)) if parts else field


def _pruned_type(of: pa.DataType, parts: Tree) -> pa.DataType:
    if pa.types.is_list(of):
        return pa.list_(_pruned_type(of.value_type, parts))
    return pa.struct(list(_pruned(of, parts)))


def _paths(path: str, of: pa.DataType) -> Iterator[str]:
    if pa.types.is_list(of):
        yield from _paths(f"{path}.list.element", of.value_type)
    elif pa.types.is_struct(of):
        for field in of:
            yield from _paths(f"{path}.{field.name}", field.type)
    else:
        yield path


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch with exactly the columns of `schema`: those it lacks are null. For files of older versions."""
    if batch.schema.equals(schema):
        return batch
    columns = [
        _conform(batch.column(field.name), field.type)
        if field.name in batch.schema.names
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _conform(array: pa.Array, to: pa.DataType) -> pa.Array:
    if array.type.equals(to):
        return array
    if pa.types.is_list(to):
        inner = _conform(array.flatten(), to.value_type)
        return pa.ListArray.from_arrays(_offsets(array), inner, type=to, mask=array.is_null())
    if pa.types.is_struct(to):
        names = {field.name for field in array.type}
        parts = [
            _conform(array.field(field.name), field.type) if field.name in names else pa.nulls(len(array), field.type)
            for field in to
        ]
        return pa.StructArray.from_arrays(parts, fields=list(to), mask=array.is_null())
    return array.cast(to)


def _offsets(array: pa.ListArray) -> pa.Array:
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return pa.array([0, *lengths.cumsum().tolist()], type=pa.int32())


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

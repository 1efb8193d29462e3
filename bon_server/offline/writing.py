"""Third stage, second half: a file of the training set, as lines of JSON or as columns."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bon_server.log.columns import MESSAGE, leaves
from bon_server.log.whole_file import sha256_of, whole_file
from bon_server.offline.eligible import lengths_of
from bon_server.offline.formats import FORMATS, Message, Prompt, Said
from bon_server.offline.plan import Plan
from bon_server.offline.rows import CHAT, LINE, Rows, firsts
from bon_server.selection import OfflineRule

ROW_GROUP_ROWS = 16_384
_ONE_VALUE = ("role",)
"""Last parts of the names of columns whose values repeat."""


def write_data(plan: Plan, path: Path, form: int | None, picks: Rows, table: Any) -> tuple[int, str]:
    """Writes picks of one form and their texts; returns rows and SHA-256 of the file.

    form: None when there are no picks; table: what `fetch` returned.
    """
    lines = FORMATS[plan.format].lines
    if lines is None:
        return _write_columns(plan, path, form, picks, table)
    encoder, rows, written = msgspec.json.Encoder(), 0, bytearray()
    for prompt, said in _lines(plan, form, picks, table):
        for line in lines(prompt, said):
            written += encoder.encode(line) + b"\n"
            rows += 1
    data = _compressed(bytes(written), plan.written.compression)
    with whole_file(path) as file:
        file.write(data)
    return rows, hashlib.sha256(data).hexdigest()


def _compressed(data: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(data, mtime=0)  # without the time, so that it is the same every time
    if compression == "zstd":
        packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
        return packed
    return data


def _lines(plan: Plan, form: int | None, picks: Rows, table: Any) -> Iterator[tuple[Prompt, list[Said]]]:
    """Prompt and candidates of each line."""
    if form is None:
        return
    prompts: Sequence[Prompt] = chats(table["prompt_messages"]) if form == CHAT else table["prompt_text"].to_pylist()
    names = table.schema.names
    columns = [
        table[name].to_pylist() if name in names else [None] * len(picks)
        for name in ("text", "reward", "finish_reason", "prompt_token_ids", "token_ids")
    ]
    texts, rewards, finish_reasons, before, sampled = columns
    parts, contexts = _parts(plan, table), _mappings(table, "reward_context")
    weights = picks["weight"].tolist()
    said = list(map(Said, texts, rewards, finish_reasons, weights, before, sampled, parts, contexts))
    starts = [*np.flatnonzero(firsts(picks, *LINE)).tolist(), len(picks)]
    for first, last in pairwise(starts):
        yield prompts[first], said[first:last]


def _parts(plan: Plan, table: Any) -> list[dict[str, float]]:
    """(p,) parts of rewards by name, where the format holds them."""
    parts, name = _mappings(table, "rewards"), plan.filters.reward
    if name is None or not FORMATS[plan.format].parts:
        return parts
    return [{**one, name: reward} for one, reward in zip(parts, table["reward"].to_pylist(), strict=True)]


def _mappings(table: Any, column: str) -> list[dict[str, Any]]:
    """(p,) lists of keys with values, as dicts; empty ones where the column is not there."""
    if column not in table.schema.names:
        return [{}] * table.num_rows
    return [{entry["key"]: entry["value"] for entry in one or ()} for one in table[column].to_pylist()]


def chats(messages: Any) -> list[list[Message]]:
    """(p,) lists of messages; column by column, which is faster than `to_pylist` of the whole."""
    messages = messages.combine_chunks()
    flat = messages.flatten()
    roles, contents = flat.field("role").to_pylist(), flat.field("content").to_pylist()
    ends = np.cumsum(lengths_of(messages)).tolist()
    every = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    return [every[first:last] for first, last in zip([0, *ends[:-1]], ends, strict=True)]


def _write_columns(plan: Plan, path: Path, form: int | None, picks: Rows, table: Any) -> tuple[int, str]:
    columns = _columns(plan, form, picks, table)
    plain = [name for name in leaves(columns.schema) if name.rpartition(".")[2] in _ONE_VALUE]
    with whole_file(path) as file:
        pq.write_table(columns, file, compression="zstd", use_dictionary=plain, row_group_size=ROW_GROUP_ROWS)
    return columns.num_rows, sha256_of(path)


def _columns(plan: Plan, form: int | None, picks: Rows, table: Any) -> Any:
    pairs = plan.rule.name.shape is OfflineRule.PAIRS
    if form is None:
        names = ["prompt", "chosen", "rejected"] if pairs else ["prompt", "completion"]
        return pa.schema([(name, pa.list_(MESSAGE)) for name in names]).empty_table()
    prompts = table["prompt_messages" if form == CHAT else "prompt_text"]
    answers = _answers(table["text"]) if form == CHAT else table["text"]
    if pairs:
        chosen, rejected = (pa.array(np.flatnonzero(picks["role"] == role)) for role in (0, 1))
        return pa.table(
            {"prompt": prompts.take(chosen), "chosen": answers.take(chosen), "rejected": answers.take(rejected)}
        )
    columns = {"prompt": prompts, "completion": answers, "reward": table["reward"]}
    if plan.rule.weights:
        columns["weight"] = pa.array(picks["weight"])
    return pa.table(columns)


def _answers(texts: Any) -> Any:
    """(p,) lists of one message."""
    texts = texts.combine_chunks()
    messages = pa.StructArray.from_arrays([pa.repeat("assistant", len(texts)), texts], fields=list(MESSAGE))
    return pa.ListArray.from_arrays(pa.array(np.arange(len(texts) + 1), pa.int32()), messages)

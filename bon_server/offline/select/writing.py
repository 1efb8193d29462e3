"""Third stage, second half: a file of the training set, as lines of JSON or as columns, and its piece of the sidecar.

The sidecar `meta.parquet` says where each chosen candidate is from, in the order of the training set; `file` and `line`
(from 0) say where it went. Each file's piece is written with it; all are joined at the end.
"""

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
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bon_server.core.selection import OfflineRule
from bon_server.log.segments.columns import MESSAGE, leaves
from bon_server.offline.select.eligible import lengths_of
from bon_server.offline.select.formats import FORMATS, ExportedCandidate, Message, Prompt
from bon_server.offline.select.plan import SelectionPlan
from bon_server.offline.select.rows import CHAT, LINE, Rows, firsts
from bon_server.system.files import sha256_of, whole_file

META_NAME = "meta.parquet"
META_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("role", pa.string()),  # of pairs: chosen or rejected
        ("rank", pa.int64()),
        ("weight", pa.float64()),
        ("prompt_hash", pa.string()),
        ("log", pa.string()),
        ("writer", pa.int32()),
        ("ordinal", pa.int64()),
        ("principal", pa.string()),
        ("request_id", pa.string()),
        ("attempt", pa.int32()),
        ("kind", pa.string()),
        ("n", pa.int32()),
        ("candidate_index", pa.int32()),
        ("reward", pa.float64()),
        ("value", pa.float64()),  # what was compared: the reward, normalised if that was asked for
        ("finish_reason", pa.string()),
        ("completion_tokens", pa.int64()),
        ("policy_id", pa.string()),
        ("policy_revision", pa.string()),
    ]
)
_ROLES = pa.array(["chosen", "rejected"])


def lines_of(plan: SelectionPlan, picks: Rows) -> Any:
    """(p,) the line of each pick in its file."""
    if FORMATS[plan.format].line_per_candidate:
        return np.arange(len(picks))
    return np.cumsum(firsts(picks, *LINE)) - 1


def meta_table(plan: SelectionPlan, name: str, picks: Rows, table: Any) -> Any:
    """(p,) rows. name: of the file; table: what `fetch` returned."""
    count = len(picks)
    pairs = plan.rule.name.shape is OfflineRule.PAIRS
    own = pc.fill_null(table["policy_revision"], "")
    logs = {writer: plan.log_of(writer).name for writer in np.unique(picks["writer"]).tolist()}
    columns = {
        "file": pa.repeat(name, count),
        "line": lines_of(plan, picks),
        "role": _ROLES.take(pa.array(picks["role"])) if pairs else pa.nulls(count, pa.string()),
        "log": pa.array([logs[writer] for writer in picks["writer"].tolist()], pa.string()),
        "candidate_index": picks["index"],
        "policy_revision": pc.if_else(pc.equal(own, ""), table["request_policy_revision"], own),
    }
    columns |= {name: picks[name] for name in ("rank", "weight", "writer", "ordinal", "value")}
    kept = set(META_SCHEMA.names) - set(columns)
    columns |= {name: table[name] for name in kept}
    return pa.Table.from_pydict({field.name: columns[field.name] for field in META_SCHEMA}, META_SCHEMA)


def _piece(work: Path, number: int) -> Path:
    return work / f"meta-{number:05d}.arrow"


def write_piece(work: Path, number: int, table: Any) -> None:
    """table: None for no rows."""
    table = META_SCHEMA.empty_table() if table is None else table
    with whole_file(_piece(work, number)) as file, pa.ipc.new_file(file, META_SCHEMA) as writer:
        writer.write_table(table)


class MetaWriter:
    """Joins the pieces, in the order in which they are added."""

    def __init__(self, file: Any, work: Path) -> None:
        self._parquet = pq.ParquetWriter(file, META_SCHEMA, compression="zstd")
        self._work = work

    def add(self, number: int) -> None:
        """A piece makes a row group."""
        with pa.OSFile(str(_piece(self._work, number))) as file:
            self._parquet.write_table(pa.ipc.open_file(file).read_all())

    def close(self) -> None:
        """Completes the file."""
        self._parquet.close()


ROW_GROUP_ROWS = 16_384
_ONE_VALUE = ("role",)
"""Last parts of the names of columns whose values repeat."""


def write_data(plan: SelectionPlan, path: Path, form: int | None, picks: Rows, table: Any) -> tuple[int, str]:
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


def _lines(
    plan: SelectionPlan, form: int | None, picks: Rows, table: Any
) -> Iterator[tuple[Prompt, list[ExportedCandidate]]]:
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
    said = list(map(ExportedCandidate, texts, rewards, finish_reasons, weights, before, sampled, parts, contexts))
    starts = [*np.flatnonzero(firsts(picks, *LINE)).tolist(), len(picks)]
    for first, last in pairwise(starts):
        yield prompts[first], said[first:last]


def _parts(plan: SelectionPlan, table: Any) -> list[dict[str, float]]:
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


def _write_columns(plan: SelectionPlan, path: Path, form: int | None, picks: Rows, table: Any) -> tuple[int, str]:
    columns = _columns(plan, form, picks, table)
    plain = [name for name in leaves(columns.schema) if name.rpartition(".")[2] in _ONE_VALUE]
    with whole_file(path) as file:
        pq.write_table(columns, file, compression="zstd", use_dictionary=plain, row_group_size=ROW_GROUP_ROWS)
    return columns.num_rows, sha256_of(path)


def _columns(plan: SelectionPlan, form: int | None, picks: Rows, table: Any) -> Any:
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

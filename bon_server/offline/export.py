"""Second pass of a selection: the chosen candidates as a training set, with a sidecar that says where each is from.

`trl-sft` is TRL's prompt-completion format, one JSON object a line: conversational,

    {"prompt": [{"role", "content"}, …], "completion": [{"role": "assistant", "content"}]}

for prompts that were chats, and `{"prompt": str, "completion": str}` for texts. TRL takes the form of the first row for
that of the whole data set, so each form gets a file of its own. Rows are in log order. The sidecar `meta.parquet` has
one row for each, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from bon_server.log.record import Record
from bon_server.log.whole_file import whole_file
from bon_server.offline.manifest import Output, sha256_of

FORMATS = ("trl-sft",)
META_NAME = "meta.parquet"
META_ROWS = 4_096
"""Rows of the sidecar that are held in memory."""
META_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("rank", pa.int64()),
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
        ("finish_reason", pa.string()),
        ("completion_tokens", pa.int32()),
        ("policy_id", pa.string()),
        ("policy_revision", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """One candidate that a rule chose."""

    log: str
    """The log folder, as it was given."""
    writer: int
    """Position of that folder among those given."""
    record: Record
    index: int
    """Of the candidate in the record."""
    rank: int
    """1 for the best, within what the rule compares: the prompt, or the whole log."""


def prompt_form(record: Record) -> str:
    """`chat` or `text`."""
    return "text" if record.prompt_text is not None else "chat"


def trl_sft(chosen: Chosen) -> bytes:
    """One line of TRL's prompt-completion format, without the line feed."""
    record, completion = chosen.record, chosen.record.candidates[chosen.index].text
    if record.prompt_text is not None:
        return msgspec.json.encode({"prompt": record.prompt_text, "completion": completion})
    return msgspec.json.encode(
        {"prompt": record.prompt_messages, "completion": [{"role": "assistant", "content": completion}]}
    )


@dataclass(slots=True)
class _Part:
    name: str
    file: BinaryIO
    form: str | None
    rows: int = 0


def export(folder: Path, chosen: Iterable[Chosen]) -> list[Output]:
    """Writes data files and sidecar, streaming; each appears when all are complete. Returns what was written."""
    parts: dict[str | None, _Part] = {}
    with ExitStack() as files:

        def part_for(form: str | None) -> _Part:
            name = f"part-{len(parts):05d}.jsonl"
            return parts.setdefault(form, _Part(name, files.enter_context(whole_file(folder / name)), form))

        meta_file = files.enter_context(whole_file(folder / META_NAME))
        meta = files.enter_context(pq.ParquetWriter(meta_file, META_SCHEMA, compression="zstd"))
        meta_rows: list[dict[str, Any]] = []
        for one in chosen:
            form = prompt_form(one.record)
            part = parts.get(form) or part_for(form)
            part.file.write(trl_sft(one) + b"\n")
            meta_rows.append(_meta_row(one, part))
            part.rows += 1
            if len(meta_rows) == META_ROWS:
                meta.write_table(pa.Table.from_pylist(meta_rows, META_SCHEMA))
                meta_rows.clear()
        meta.write_table(pa.Table.from_pylist(meta_rows, META_SCHEMA))
        if not parts:
            part_for(None)
    return [*(_data_output(folder, part) for part in parts.values()), _meta_output(folder, parts.values())]


def _data_output(folder: Path, part: _Part) -> Output:
    output = Output(file=part.name, role="data", rows=part.rows, sha256=sha256_of(folder / part.name))
    if part.form is not None:
        output["prompts"] = part.form
    return output


def _meta_output(folder: Path, parts: Iterable[_Part]) -> Output:
    rows = sum(part.rows for part in parts)
    return Output(file=META_NAME, role="meta", rows=rows, sha256=sha256_of(folder / META_NAME))


def _meta_row(chosen: Chosen, part: _Part) -> dict[str, Any]:
    record, candidate = chosen.record, chosen.record.candidates[chosen.index]
    policy_revision = candidate.policy_revision or (record.policy.revision if record.policy else None)
    return {
        "file": part.name,
        "line": part.rows,
        "rank": chosen.rank,
        "prompt_hash": record.prompt_hash,
        "log": chosen.log,
        "writer": chosen.writer,
        "ordinal": record.ordinal,
        "principal": record.principal,
        "request_id": record.request_id,
        "attempt": record.attempt,
        "kind": record.kind.value,
        "n": record.n,
        "candidate_index": chosen.index,
        "reward": candidate.reward,
        "finish_reason": candidate.finish_reason and candidate.finish_reason.value,
        "completion_tokens": candidate.completion_tokens,
        "policy_id": record.policy.id if record.policy else None,
        "policy_revision": policy_revision,
    }

"""Logs to select from, made quickly: a prompt of its own and random rewards for each request, texts from a few hundred.

Rows go through the writer of segments, with 8 candidates of about 24 tokens each unless others are asked for; one in
ten is truncated, rewards have two digits (so that there are ties), one in fifty has none.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from msgspec import structs

from benchmarks.log_made import SEGMENT_BYTES
from benchmarks.log_records import DIFFERENT, START, records
from bon_server.log.record import Record
from bon_server.log.segments.columns import to_batch
from bon_server.log.segments.files import SegmentsWriter

CANDIDATES = 8
TOKENS = 24
TRUNCATED_SHARE = 0.1
NO_REWARD_SHARE = 0.02
REWARD_DIGITS = 2


def make_log(
    folder: Path, requests: int, candidates: int = CANDIDATES, tokens: int = TOKENS, digits: int = REWARD_DIGITS
) -> None:
    """A log of so many requests, in segments of the usual size. The folder must be new.

    candidates: of a request, at most 16. tokens: of a candidate, at most 40. digits: of a reward, after the point; with
    16 of them there are no ties.
    """
    random = np.random.default_rng(requests)
    made = to_batch([_small(record, candidates, tokens) for record in islice(records(), DIFFERENT)])
    per_segment = max(1, SEGMENT_BYTES // made.nbytes) * DIFFERENT
    for first in range(0, requests, per_segment):
        until = min(first + per_segment, requests)
        with SegmentsWriter(folder, "benchmark", first + 1, until) as writer:
            for start in range(first, until, DIFFERENT):
                batch = _varied(made, start, min(DIFFERENT, until - start), digits, random)
                writer.add(START.date().isoformat(), batch)


def _small(record: Record, candidates: int, tokens: int) -> Record:
    some = tuple(
        structs.replace(one, text=" ".join((one.text or "").split()[:tokens]), token_ids=one.token_ids[:tokens])
        for one in record.candidates[:candidates]
    )
    return replace(record, candidates=some, n=candidates, selected_index=0)


def _varied(made: pa.RecordBatch, start: int, rows: int, digits: int, random: np.random.Generator) -> pa.RecordBatch:
    """The first rows of a batch with other prompts' hashes, ids and rewards."""
    columns: dict[str, Any] = dict(zip(made.schema.names, made.slice(0, rows).columns, strict=True))
    ordinals = np.arange(start + 1, start + 1 + rows)
    columns["ordinal"] = pa.array(ordinals)
    columns["request_id"] = pa.array([f"{one:020x}" for one in ordinals.tolist()])
    columns["prompt_hash"] = pa.array([random.bytes(32).hex() for _ in range(rows)])
    flat = columns["candidates"].flatten()
    parts = {field.name: flat.field(field.name) for field in flat.type}
    count = len(flat)
    no_reward, truncated = random.random(count) < NO_REWARD_SHARE, random.random(count) < TRUNCATED_SHARE
    parts["reward"] = pa.array(random.normal(size=count).round(digits), mask=no_reward)
    parts["status"] = pa.array(np.where(no_reward, "unscored", "scored"))
    parts["finish_reason"] = pa.array(np.where(truncated, "length", "stop"))
    varied = pa.StructArray.from_arrays(list(parts.values()), fields=list(flat.type))
    offsets = pa.array(np.arange(rows + 1) * (count // rows), pa.int32())
    columns["candidates"] = pa.ListArray.from_arrays(offsets, varied, type=made.schema.field("candidates").type)
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=made.schema)

"""Large logs, made quickly: batches of the usual records, with other ids, go through the writer of segments.

Sealing a million records through the spool would take most of an hour; what reads segments cannot tell the difference.
The folder has segments only and no spool, which is a log too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from msgspec import structs

from benchmarks.log_records import DIFFERENT, START, records
from bon_server.log.record import Record
from bon_server.log.segments.columns import to_batch
from bon_server.log.segments.files import SegmentsWriter

SEGMENT_BYTES = 64 << 20
"""Of Arrow data in one file, about what `log.seal_bytes` gives."""
BATCH_RECORDS = 100
"""Of a batch given to the writer; few, so that row groups get as large as sealing makes them, and not larger."""
SMALL_CANDIDATES = 2
SMALL_TOKENS = 16


def small(record: Record) -> Record:
    """About a fifteenth of a record, so that a million of them fit: two candidates of 16 tokens."""
    some = tuple(
        structs.replace(one, text=(one.text or "")[: 5 * SMALL_TOKENS], token_ids=(one.token_ids or ())[:SMALL_TOKENS])
        for one in record.candidates[:SMALL_CANDIDATES]
    )
    return replace(record, candidates=some, n=SMALL_CANDIDATES, selected_index=0, prompt_token_ids=None)


def make_segments(folder: Path, count: int, change: Callable[[Record], Record] = lambda record: record) -> None:
    """A log of so many records in segments of the usual size. The folder must be new."""
    made = to_batch([change(record) for record in islice(records(), DIFFERENT)])
    per_segment = max(1, SEGMENT_BYTES // made.nbytes) * DIFFERENT
    for first in range(0, count, per_segment):
        until = min(first + per_segment, count)
        with SegmentsWriter(folder, "benchmark", first + 1, until) as writer:
            for batch in _renamed(made, first, until):
                writer.add(START.date().isoformat(), batch)


def _renamed(made: pa.RecordBatch, first: int, until: int) -> Iterator[pa.RecordBatch]:
    """Copies with the ids and ordinals of [first, until)."""
    for start in range(first, until, BATCH_RECORDS):
        rows = min(BATCH_RECORDS, until - start)
        ordinals = np.arange(start + 1, start + 1 + rows)
        columns = dict(zip(made.schema.names, made.slice(start % DIFFERENT, rows).columns, strict=True))
        columns["ordinal"] = pa.array(ordinals)
        columns["request_id"] = pa.array([f"{one:020x}" for one in ordinals.tolist()])
        yield pa.RecordBatch.from_arrays(list(columns.values()), schema=made.schema)

"""The columns of a feedback segment, and observations as Arrow batches and back.

A value is in one of three columns, by its kind; the others are null. Columns are only ever added.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import Any

import pyarrow as pa

from bon_server.log.feedback import Feedback
from bon_server.log.segments.columns import TAGS
from bon_server.log.segments.files import FEEDBACK_FOLDER, SegmentKind

FEEDBACK_SCHEMA = pa.schema(
    [
        ("ordinal", pa.int64()),
        ("feedback_id", pa.string()),
        ("principal", pa.string()),
        ("request_id", pa.string()),
        ("attempt", pa.int32()),
        ("candidate_index", pa.int64()),
        ("name", pa.string()),
        ("value_bool", pa.bool_()),
        ("value_number", pa.float64()),
        ("value_text", pa.string()),
        ("created_at", pa.timestamp("us", tz="UTC")),
        ("tags", TAGS),
    ],
    metadata={"schema_version": "1"},
)
"""Row of a feedback segment."""
FEEDBACK = SegmentKind(FEEDBACK_FOLDER, FEEDBACK_SCHEMA, [("request_id", "ascending"), ("ordinal", "ascending")])


def to_batch(observations: Sequence[tuple[int, Feedback]]) -> pa.RecordBatch:
    """(len(observations),) rows. Raises ValueError, without content, for what does not fit the columns."""
    try:
        return pa.RecordBatch.from_pylist([_row(*one) for one in observations], schema=FEEDBACK_SCHEMA)
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(f"an observation does not fit the columns of a segment ({type(error).__name__})") from None


def _row(ordinal: int, one: Feedback) -> dict[str, Any]:
    return {
        "ordinal": ordinal,
        "feedback_id": one.feedback_id,
        "principal": one.principal,
        "request_id": one.request_id,
        "attempt": one.attempt,
        "candidate_index": one.candidate_index,
        "name": one.name,
        "value_bool": one.value if isinstance(one.value, bool) else None,
        "value_number": one.value if isinstance(one.value, float) else None,
        "value_text": one.value if isinstance(one.value, str) else None,
        "created_at": one.created_at,
        "tags": [{"key": key, "value": value} for key, value in one.tags.items()],
    }


def from_batch(batch: pa.RecordBatch) -> list[tuple[int, Feedback]]:
    """(rows,) ordinals and observations, in the batch's order. Raises ValueError for rows that are none."""
    return [(row["ordinal"], _feedback(row)) for row in batch.to_pylist()]


def _feedback(row: dict[str, Any]) -> Feedback:
    values = [row[name] for name in ("value_bool", "value_number", "value_text") if row[name] is not None]
    required = ("feedback_id", "principal", "request_id", "attempt", "name", "created_at", "tags")
    if len(values) != 1 or any(row[name] is None for name in required):
        raise ValueError("a row of a feedback segment is not complete")
    return Feedback(
        feedback_id=row["feedback_id"],
        request_id=row["request_id"],
        attempt=row["attempt"],
        candidate_index=row["candidate_index"],
        name=row["name"],
        value=values[0],
        created_at=row["created_at"].astimezone(UTC),
        principal=row["principal"],
        tags={entry["key"]: entry["value"] for entry in row["tags"]},
    )

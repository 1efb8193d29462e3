"""Before the first stage, when there are several writers: requests that more than one of them answered.

A client that tries again may meet another replica; the earliest answer counts and the others are left out. Found by map
and merge: digests of caller and request id are shuffled, with time and place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bon_server.log.columns import conform, prune
from bon_server.offline.digests import request_keys
from bon_server.offline.plan import Plan
from bon_server.offline.rows import Rows, empty, firsts, sort_by
from bon_server.offline.runs import read_runs, write_runs
from bon_server.types import Outcome

ANSWER = np.dtype([("hi", "u8"), ("lo", "u8"), ("created_us", "i8"), ("writer", "i8"), ("ordinal", "i8")])
_COLUMNS = ("ordinal", "principal", "request_id", "outcome", "created_at")
_ANSWERED = (Outcome.OK, Outcome.PARTIAL)


def _answers_file(plan: Plan, task: int) -> Path:
    return plan.work / f"answers-{task:05d}.answers"


def _repeated_file(plan: Plan, task: int) -> Path:
    return plan.work / f"repeated-{task:05d}.places"


def answers(plan: Plan, task: int) -> dict[str, Any]:
    """Writes who was answered in some files, and when, by caller and request. What cannot be read is told later."""
    schema = prune(_COLUMNS)
    found = [empty(ANSWER)]
    for number in range(*plan.tasks[task]):
        file = plan.files[number]
        for batch in file.part.batches(schema, plan.where(file), lambda error: None):
            found.append(_answers(file.writer, conform(batch, schema)))
    rows = np.concatenate(found)
    write_runs(_answers_file(plan, task), rows, plan.bucket(rows), plan.buckets)
    return {"answers": len(rows)}


def _answers(writer: int, batch: Any) -> Rows:
    answered = batch.filter(pc.is_in(batch["outcome"], value_set=pa.array([str(one) for one in _ANSWERED])))
    rows = request_keys(answered)
    found = np.zeros(len(rows), dtype=ANSWER)
    found["hi"], found["lo"], found["writer"] = rows["hi"], rows["lo"], writer
    found["created_us"] = answered["created_at"].cast(pa.int64()).to_numpy()
    found["ordinal"] = answered["ordinal"].to_numpy()
    return found


def repeated(plan: Plan, task: int) -> dict[str, Any]:
    """Writes the places of all answers to some requests but the earliest, by place."""
    files = [_answers_file(plan, number) for number in range(len(plan.tasks))]
    later = [empty(ANSWER)]
    for bucket in plan.buckets_of(task):
        rows = read_runs(files, ANSWER, plan.buckets, bucket, bucket)
        rows = sort_by(rows, "hi", "lo", "created_us", "writer", "ordinal")
        later.append(rows[~firsts(rows, "hi", "lo")])
    rows = np.concatenate(later)
    ranges = plan.range_of(0, rows["writer"], rows["ordinal"])
    write_runs(_repeated_file(plan, task), rows, ranges, plan.ranges[-1])
    return {"repeated": len(rows)}


def repeated_places(plan: Plan, writer: int, ordinals: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) whether the request there was answered earlier elsewhere."""
    if not plan.repeated or not len(ordinals):
        return np.zeros(len(ordinals), dtype=np.bool_)
    first, last = plan.range_of(0, np.array([writer, writer]), np.array([ordinals.min(), ordinals.max()])).tolist()
    files = [_repeated_file(plan, number) for number in range(plan.bucket_tasks)]
    later = read_runs(files, ANSWER, plan.ranges[-1], first, last)
    found: NDArray[np.bool_] = np.isin(ordinals, later["ordinal"][later["writer"] == writer])
    return found

"""RecordFeedback: checked, matched with its request, committed."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

from bon.v1 import bon_pb2 as pb

from bon_server.errors import FieldViolation, InvalidRequest, RequestIdReused, UnknownRequest
from bon_server.log.feedback import Feedback, Recorded, record_feedback
from bon_server.log.spool import Spool
from bon_server.serving.content import Redact, Redaction, clean_values
from bon_server.serving.validation import Violations, check_id, check_labels

MAX_NAME_CHARS = 64
MAX_VALUE_CHARS = 64 << 10


async def record(
    message: pb.RecordFeedbackRequest, principal: str, spool: Spool, redaction: Redaction | None
) -> pb.RecordFeedbackResponse:
    """Answers once the observation is on disk.

    Raises `InvalidRequest`, `UnknownRequest` where this caller made no such request, and `RequestIdReused` where the
    feedback id belongs to another observation, and as `Spool.check` does. Text value and tags are redacted first.
    """
    _check(message)
    about = await asyncio.to_thread(spool.find, principal, message.request_id)
    if about is None:
        raise UnknownRequest("no request of this caller with this request_id is in the log")
    index, count = message.candidate_index, len(about.candidates)
    if message.HasField("candidate_index") and index >= count:
        raise InvalidRequest(FieldViolation("candidate_index", f"{index} is not from 0 to {count - 1}"))
    feedback = Feedback(
        feedback_id=message.feedback_id or uuid4().hex,
        request_id=message.request_id,
        attempt=about.attempt,
        candidate_index=index if message.HasField("candidate_index") else None,
        name=message.name,
        value=_value(message),
        created_at=datetime.now(UTC),
        principal=principal,
        tags=dict(message.tags),
    )
    spool.check()
    if redaction is not None:
        given = feedback
        feedback = await redaction.apply(lambda clean: _redacted(given, clean))
    recorded = await asyncio.to_thread(record_feedback, spool, feedback)
    if recorded is Recorded.TAKEN:
        raise RequestIdReused("this feedback_id was used for another observation")
    return pb.RecordFeedbackResponse(feedback_id=feedback.feedback_id, replayed=recorded is Recorded.REPLAYED)


def _redacted(feedback: Feedback, clean: Redact) -> Feedback:
    value = clean(feedback.value) if isinstance(feedback.value, str) else feedback.value
    return replace(feedback, value=value, tags=clean_values(feedback.tags, clean))


def _check(message: pb.RecordFeedbackRequest) -> None:
    found = Violations()
    check_id(found, "feedback_id", message.feedback_id)
    found.unless(bool(message.request_id), "request_id", "empty; feedback is about a request")
    check_id(found, "request_id", message.request_id)
    length = len(message.name)
    found.unless(1 <= length <= MAX_NAME_CHARS, "name", f"{length} characters long, allowed are 1 to {MAX_NAME_CHARS}")
    form = message.WhichOneof("value")
    found.unless(form is not None, "value", "none given; one of bool_value, double_value and string_value is required")
    number = message.double_value
    found.unless(math.isfinite(number), "double_value", f"{number} is not finite")
    length = len(message.string_value)
    found.unless(
        length <= MAX_VALUE_CHARS, "string_value", f"{length} characters long, allowed are 0 to {MAX_VALUE_CHARS}"
    )
    check_labels(found, {}, message.tags)
    found.done()


def _value(message: pb.RecordFeedbackRequest) -> bool | float | str:
    if message.HasField("bool_value"):
        return message.bool_value
    return message.double_value if message.HasField("double_value") else message.string_value

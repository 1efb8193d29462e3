"""RecordFeedback: checked, matched with its request, committed."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from uuid import uuid4

from bon.v1 import bon_pb2 as pb

from bon_server.core.errors import FieldViolation, InvalidRequest, RequestIdReused, Unavailable, UnknownRequest
from bon_server.log.feedback import Feedback, Recorded, record_feedback
from bon_server.log.spool.spool import Spool
from bon_server.serving.admission.quotas import Quotas
from bon_server.serving.content import Redact, Redaction, clean_values
from bon_server.serving.rpc.validate import Violations, check_id, check_labels

MAX_NAME_CHARS = 64
MAX_VALUE_CHARS = 64 << 10
THREADS = 2
"""Observations that are looked up, redacted and committed at a time; the log commits them one after the other."""
MOST_WAITING = 64
"""Further ones, which wait for a thread."""
KNOWN_REQUESTS = 1024
"""Requests whose number of candidates is remembered, so that feedback on one request reads its segment once."""


class FeedbackDesk:
    """Where feedback is recorded, on threads of its own: no flood of it holds up answers, or the check of a key.

    Few observations are taken at a time, a few more wait, and the rest are refused at once.
    """

    def __init__(self, spool: Spool, redaction: Redaction | None, quotas: Quotas, retry_after_ms: int) -> None:
        self._spool = spool
        self._redaction = redaction
        self._quotas = quotas
        self._retry_after_ms = retry_after_ms
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="feedback")
        self._taken = 0
        self._count_candidates = lru_cache(KNOWN_REQUESTS)(self._look_up)

    def close(self) -> None:
        """Takes nothing more, and waits for nobody."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def record(self, message: pb.RecordFeedbackRequest, principal: str) -> pb.RecordFeedbackResponse:
        """Answers once the observation is on disk.

        Raises `InvalidRequest`, `Unavailable` where too many are under way, `QuotaExceeded`, `UnknownRequest` where
        this caller made no such request, `RequestIdReused` where the feedback id belongs to another observation, and
        as `Spool.check` does. Text value and tags are redacted first.
        """
        _check(message)
        if self._taken >= THREADS + MOST_WAITING:
            raise Unavailable("too much feedback is being recorded", self._retry_after_ms)
        self._quotas.spend(principal, 1)
        self._taken += 1
        recording = asyncio.create_task(self._record(message, principal))
        recording.add_done_callback(self._done)  # not when the caller leaves: the recording goes on
        return await asyncio.shield(recording)

    def _done(self, recording: asyncio.Future[pb.RecordFeedbackResponse]) -> None:
        self._taken -= 1
        if not recording.cancelled():
            recording.exception()  # marks it as seen: nobody may be left to look

    async def _record(self, message: pb.RecordFeedbackRequest, principal: str) -> pb.RecordFeedbackResponse:
        loop = asyncio.get_running_loop()
        observed = await loop.run_in_executor(self._threads, self._observe, message, principal)
        feedback = observed
        if self._redaction is not None:
            feedback = await self._redaction.apply(lambda clean: _redacted(observed, clean))
        recorded = await loop.run_in_executor(self._threads, record_feedback, self._spool, feedback)
        if recorded is Recorded.TAKEN:
            raise RequestIdReused("this feedback_id was used for another observation")
        return pb.RecordFeedbackResponse(feedback_id=feedback.feedback_id, replayed=recorded is Recorded.REPLAYED)

    def _observe(self, message: pb.RecordFeedbackRequest, principal: str) -> Feedback:
        """On one of the threads."""
        attempt = self._spool.latest_attempt(principal, message.request_id)
        if attempt is None:
            raise _unknown()
        index = message.candidate_index if message.HasField("candidate_index") else None
        if index is not None:
            attempt, count = self._count_candidates(principal, message.request_id, attempt)
            if index >= count:
                raise InvalidRequest(FieldViolation("candidate_index", f"{index} is not from 0 to {count - 1}"))
        self._spool.check()
        return _observation(message, principal, attempt, index)

    def _look_up(self, principal: str, request_id: str, attempt: int) -> tuple[int, int]:
        """The latest attempt and its number of candidates; attempt: at least this one, and makes a later one another
        entry of the cache."""
        logged = self._spool.latest(principal, request_id)
        if logged is None:
            raise _unknown()
        return logged.attempt, self._spool.count_candidates(logged)


def _unknown() -> UnknownRequest:
    return UnknownRequest("no request of this caller with this request_id is in the log")


def _observation(message: pb.RecordFeedbackRequest, principal: str, attempt: int, index: int | None) -> Feedback:
    return Feedback(
        feedback_id=message.feedback_id or uuid4().hex,
        request_id=message.request_id,
        attempt=attempt,
        candidate_index=index,
        name=message.name,
        value=_value(message),
        created_at=datetime.now(UTC),
        principal=principal,
        tags=dict(message.tags),
    )


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

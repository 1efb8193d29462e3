"""Sealing of feedback: the steps of `sealing.py`, over the table of observations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import apsw

from bon_server.errors import LogError
from bon_server.log import feedback_register, register
from bon_server.log.feedback import Feedback, said, unpack
from bon_server.log.feedback_columns import FEEDBACK, to_batch
from bon_server.log.feedback_register import SealedFeedback
from bon_server.log.register import FEEDBACK as LEDGER
from bon_server.log.sealing_steps import last_ordinal, plan_next, read_back, waiting_bytes
from bon_server.log.segments import SegmentsWriter
from bon_server.log.spool import Spool

_PAGE = "SELECT ordinal, sha256, feedback FROM feedback WHERE ordinal > ? AND ordinal <= ? ORDER BY ordinal LIMIT 256"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Observations = list[tuple[int, Feedback]]


@dataclass(slots=True)
class FeedbackSealed:
    """What a sealing did."""

    rows: int = 0
    files: list[str] = field(default_factory=list)
    """Made, relative to the log folder."""
    left: int = 0
    """Damaged ones, which stay in the spool."""


def seal_feedback(spool: Spool, seal_bytes: int, replay_window_s: float) -> FeedbackSealed:
    """Seals the feedback that is in the spool now; blocks. Parameters and errors are those of `sealing.seal`."""
    result = FeedbackSealed()
    with spool.reading() as reading:
        writer = register.writer_id(reading) or ""
        until = last_ordinal(reading, LEDGER)
        while (first_last := plan_next(spool, reading, until, seal_bytes, LEDGER)) is not None:
            _seal_range(spool, reading, writer, first_last, replay_window_s, result)
    return result


def feedback_waiting(reading: apsw.Connection) -> tuple[int, int | None]:
    """Bytes of the feedback that the next sealings take, and when the oldest came (microseconds since 1970)."""
    after, size = register.sealed_through(reading, LEDGER), waiting_bytes(reading, LEDGER)
    oldest = "SELECT ordinal, sha256, feedback FROM feedback WHERE ordinal > ? ORDER BY ordinal LIMIT 1"
    row = reading.execute(oldest, (after,)).fetchone()
    if row is None:
        return size, None
    try:
        return size, (unpack(*row).created_at - _EPOCH) // timedelta(microseconds=1)
    except LogError:
        return size, 0  # damaged: a sealing passes it by


def _seal_range(
    spool: Spool,
    reading: apsw.Connection,
    writer: str,
    first_last: tuple[int, int],
    replay_window_s: float,
    result: FeedbackSealed,
) -> None:
    until_us = spool.clock.latest_us() + round(replay_window_s * 1e6)
    left: list[int] = []
    with SegmentsWriter(spool.directory, writer, *first_last, FEEDBACK) as files:
        for page in _pages(reading, first_last, left):
            for date, some in _by_date(page).items():
                files.add(date, to_batch(some))
            if replay_window_s > 0:
                spool.transaction(partial(feedback_register.remember, observations=_sealed(page, until_us)))
    made = read_back(spool.directory, files.rows(), first_last, until_us)
    spool.transaction(lambda database: register.complete(database, made, left, LEDGER))
    result.rows += sum(files.rows().values())
    result.files += files.rows()
    result.left += len(left)


def _pages(reading: apsw.Connection, first_last: tuple[int, int], left: list[int]) -> Iterator[Observations]:
    """The feedback of a range, in short transactions; ordinals of damaged rows are added to `left`."""
    after, last = first_last[0] - 1, first_last[1]
    while rows := _rows(reading, after, last):
        found: Observations = []
        for ordinal, sha256, blob in rows:
            try:
                found.append((ordinal, unpack(ordinal, sha256, blob)))
            except LogError:
                left.append(ordinal)
        yield found
        after = rows[-1][0]


def _rows(reading: apsw.Connection, after: int, last: int) -> list[Any]:
    return reading.execute(_PAGE, (after, last)).fetchall()


def _by_date(observations: Observations) -> dict[str, Observations]:
    dates: dict[str, Observations] = defaultdict(list)
    for ordinal, one in observations:
        dates[one.created_at.astimezone(UTC).date().isoformat()].append((ordinal, one))
    return dates


def _sealed(observations: Observations, until_us: int) -> Sequence[SealedFeedback]:
    return [
        SealedFeedback(one.principal, one.feedback_id, said(one), ordinal, until_us) for ordinal, one in observations
    ]

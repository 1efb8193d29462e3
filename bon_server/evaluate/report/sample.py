"""Some requests of a log with their texts: the same ones whenever the log is read, however large it is.

Chosen by a digest of their id, which is as good as drawing them at random and needs no second look at the others.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from hashlib import blake2b

import msgspec
import numpy as np
import pyarrow as pa

from bon_server.core.types import FinishReason, Kind, PolicyRef, Sampling
from bon_server.evaluate.reading import LogSource, ReadCounts, tables
from bon_server.log.read.reader import LogReader, Where
from bon_server.log.scores.joined import IDENTITY, AddedScores
from bon_server.log.segments.where import Ordinals

SAMPLED_REQUESTS = 1_000


class SampledCandidate(msgspec.Struct):
    """A candidate, as far as the report shows it."""

    index: int
    text: str = ""
    reward: float | None = None
    rewards: dict[str, float] = {}
    finish_reason: FinishReason | None = None


class _Message(msgspec.Struct):
    role: str
    content: str


class SampledRequest(msgspec.Struct):
    """A request, as far as the report shows it."""

    request_id: str
    kind: Kind
    created_at: datetime
    candidates: list[SampledCandidate]
    principal: str = ""
    attempt: int = 1
    prompt_text: str | None = None
    prompt_messages: list[_Message] | None = None
    policy: PolicyRef | None = None
    sampling: Sampling | None = None
    content_logged: bool = True

    @property
    def prompt(self) -> str:
        """The prompt in one text, the role before each message but a single user's."""
        if self.prompt_text is not None:
            return self.prompt_text
        messages = self.prompt_messages or []
        if len(messages) == 1 and messages[0].role == "user":
            return messages[0].content
        return "\n\n".join(f"[{message.role}] {message.content}" for message in messages) or "(token ids)"

    @property
    def scored(self) -> list[SampledCandidate]:
        """Candidates with a reward, the best first; of equals the lowest index."""
        scored = [candidate for candidate in self.candidates if candidate.reward is not None]
        return sorted(scored, key=lambda candidate: (-(candidate.reward or 0.0), candidate.index))


def sample_requests(
    source: LogSource, most: int = SAMPLED_REQUESTS, stopped: bool = False, scores: Sequence[str] = ()
) -> list[SampledRequest]:
    """At most so many requests with at least two scored candidates, in an order that says nothing of them.

    They are of those that the curve is of. stopped: whether that is the stopped ones, see `tables`. scores: added
    scores to put among the rewards of their candidates.
    """
    chosen = heapq.nsmallest(most, _places(source, stopped))
    with ExitStack() as stack:
        readers = [stack.enter_context(LogReader(log, source.on_damage)) for log in source.logs]
        read = _read(readers, chosen, [AddedScores(log, source.on_damage) for log in source.logs], scores)
        return sorted(read, key=lambda request: _digest(request.principal, request.request_id))


def _places(source: LogSource, stopped: bool) -> Iterator[tuple[int, int, int]]:
    """Digest of the id, log and ordinal of every request that can be taken."""
    columns = ("principal", "request_id", "ordinal")
    for number, log in enumerate(source.logs):
        one = replace(source, logs=(log,), merge=False, on_records=lambda records: None)
        for table in tables(one, ("reward",), ReadCounts(), columns):
            scored = np.bincount(table.request[np.isfinite(table.numbers["reward"])], minlength=len(table.prompt))
            some = table.take((scored > 1) & (table.stopped == stopped))
            of_each = (some.columns[name].tolist() for name in columns)
            for principal, request_id, ordinal in zip(*of_each, strict=True):
                yield _digest(principal or "", request_id), number, ordinal


def _read(
    readers: Sequence[LogReader],
    chosen: Sequence[tuple[int, int, int]],
    added: Sequence[AddedScores],
    scores: Sequence[str],
) -> Iterator[SampledRequest]:
    ordinals: dict[int, set[int]] = defaultdict(set)
    for _, number, ordinal in chosen:
        ordinals[number].add(ordinal)
    digests = {digest for digest, _, _ in chosen}
    for number, reader in enumerate(readers):
        for position, request in reader.fields(SampledRequest, Where(ordinals=Ordinals(ordinals[number]))):
            digest = _digest(request.principal, request.request_id)
            if digest in digests:  # a request in two logs comes once
                digests.discard(digest)
                for name in scores:
                    _add_score(request, added[number], name, reader.writers[position.writer], position.ordinal)
                yield request


def _add_score(request: SampledRequest, added: AddedScores, name: str, writer: str, ordinal: int) -> None:
    key = {"ordinal": [ordinal], **{name: [getattr(request, name)] for name in IDENTITY}}
    column = added.column(name, writer, pa.RecordBatch.from_pydict(key), np.array([len(request.candidates)]))
    for candidate, score in zip(request.candidates, column.tolist(), strict=True):
        if np.isfinite(score):
            candidate.rewards = {**candidate.rewards, name: score}


def _digest(principal: str, request_id: str) -> int:
    return int.from_bytes(blake2b(f"{principal}\0{request_id}".encode(), digest_size=8).digest())

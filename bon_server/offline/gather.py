"""First pass of a selection: the small columns of every candidate that may be chosen, and a count of the others.

Only these fields of a record are decoded; prompts and completions are read again, for the chosen ones, in the second
pass. Why a candidate is left out is counted under one reason, the first of these that holds:

    kind_score …        its record is of a kind that is not asked for
    repeated_request    the same request was answered earlier, in another log
    no_content          its record was logged without prompt and completions
    prompt_tokens       its prompt came as token ids, which the export format cannot hold
    length, …           its text is not complete: the finish reason
    unscored, …         it has no reward: the status
    other_reward_model  another reward model than the one asked for gave its reward

Failed and cancelled attempts take part: what they sampled to the end and scored is as good as any other sample.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
import numpy as np

from bon_server.log.reader import LogReader
from bon_server.offline.manifest import Counts, Filters, Input
from bon_server.selection import Pool, random_priority, request_key
from bon_server.types import CandidateStatus, FinishReason, Kind, ModelRef, Outcome, PolicyRef

BATCH_CANDIDATES = 1 << 16


class _Candidate(msgspec.Struct):
    index: int
    status: CandidateStatus
    reward: float | None = None
    finish_reason: FinishReason | None = None


class _Message(msgspec.Struct):
    role: str


class _Request(msgspec.Struct):
    request_id: str
    kind: Kind
    outcome: Outcome
    created_at: datetime
    prompt_hash: str
    candidates: list[_Candidate]
    principal: str = ""
    attempt: int = 1
    prompt_text: str | None = None
    prompt_messages: list[_Message] | None = None
    policy: PolicyRef | None = None
    reward_models: tuple[ModelRef, ...] = ()
    content_logged: bool = True

    def place(self, writer: int, ordinal: int) -> _Place:
        return self.created_at, writer, ordinal


class _Answered(msgspec.Struct):
    request_id: str
    outcome: Outcome
    created_at: datetime
    principal: str = ""


_Place = tuple[datetime, int, int]
"""When a request began, its writer and its ordinal: the earliest of several answers sorts first."""


@dataclass(slots=True)
class _Columns:
    """A batch being filled; lists of one length."""

    prompt: list[bytes]
    reward: list[float]
    writer: list[int]
    ordinal: list[int]
    index: list[int]
    key: list[int]

    @classmethod
    def empty(cls) -> _Columns:
        return cls([], [], [], [], [], [])

    def pool(self, random: bool) -> Pool:
        pool = Pool.of(self.prompt, self.reward, self.writer, self.ordinal, self.index)
        if not random:
            return pool
        draw = random_priority(np.array(self.key, dtype=np.uint64), pool.index)
        return Pool(pool.prompt, draw, pool.writer, pool.ordinal, pool.index)


class Gathering:
    """Reads logs once. `pools` yields what may be chosen; the other attributes are complete when it has ended."""

    def __init__(
        self,
        readers: Sequence[LogReader],
        filters: Filters,
        random_seed: int | None,
        on_records: Callable[[int], None],
    ) -> None:
        """random_seed: draw priorities instead of taking rewards. on_records: called with the records read so far."""
        self._readers = readers
        self._filters = filters
        self._seed = random_seed
        self._on_records = on_records
        self._earliest = _earliest_answers(readers) if sum(len(reader.writers) for reader in readers) > 1 else None
        self._requests = 0
        self._candidates = 0
        self._eligible = 0
        self._dropped: Counter[str] = Counter()
        self._prompts: set[bytes] = set()
        self.inputs: list[Input] = []
        self.policies: set[tuple[str, str]] = set()
        """(id, revision) of the policies of the eligible candidates."""
        self.reward_models: dict[str, tuple[ModelRef, ...]] = {}
        """Who gave the rewards of the eligible candidates, by exact name; comparable only when there is one."""

    def pools(self) -> Iterator[Pool]:
        """Batches of eligible candidates, in log order."""
        columns = _Columns.empty()
        for first_writer, reader in with_writers(self._readers):
            for position, request in reader.fields(_Request):
                self._add(columns, first_writer + position.writer, position.ordinal, request)
                self._on_records(self._requests)
                if len(columns.index) >= BATCH_CANDIDATES:
                    yield columns.pool(self._seed is not None)
                    columns = _Columns.empty()
            self._note_inputs(reader)
        yield columns.pool(self._seed is not None)

    def counts(self, selected: int) -> Counts:
        """What was read and left out."""
        return Counts(
            requests=self._requests,
            prompts=len(self._prompts),
            candidates=self._candidates,
            eligible=self._eligible,
            dropped=dict(sorted(self._dropped.items())),
            selected=selected,
        )

    def _note_inputs(self, reader: LogReader) -> None:
        for source in reader.sources():
            self.inputs.append(
                Input(file=str(source.file), rows=source.rows, sha256=source.sha256, last_ordinal=source.last_ordinal)
            )

    def _add(self, columns: _Columns, writer: int, ordinal: int, request: _Request) -> None:
        prompt = hashlib.sha256(request.prompt_hash.encode()).digest()
        self._prompts.add(prompt)
        self._requests += 1
        self._candidates += len(request.candidates)
        reason = self._unusable(request, writer, ordinal)
        if reason is not None:
            self._dropped[reason] += len(request.candidates)
            return
        group = prompt if self._filters["merge"] else b"%d/%d" % (writer, ordinal)
        key = self._key(request)
        before = len(columns.index)
        for candidate in request.candidates:
            reason = self._unfit(candidate, request)
            if reason is not None or candidate.reward is None:
                self._dropped[reason or candidate.status] += 1
                continue
            columns.prompt.append(group)
            columns.reward.append(candidate.reward)
            columns.writer.append(writer)
            columns.ordinal.append(ordinal)
            columns.index.append(candidate.index)
            columns.key.append(key)
        self._note_sources(request, len(columns.index) - before)

    def _key(self, request: _Request) -> int:
        if self._seed is None:
            return 0
        return request_key(self._seed, request.principal, request.request_id, request.attempt)

    def _note_sources(self, request: _Request, eligible: int) -> None:
        self._eligible += eligible
        if eligible:
            self.reward_models.setdefault(reward_model_names(request.reward_models)[1], request.reward_models)
            if request.policy is not None:
                self.policies.add((request.policy.id, request.policy.revision))

    def _unusable(self, request: _Request, writer: int, ordinal: int) -> str | None:
        """Why no candidate of a request can be chosen."""
        if request.kind not in self._filters["kinds"]:
            return f"kind_{request.kind}"
        if self._earliest is not None and request.outcome in _REPLAYABLE:
            earliest = self._earliest[request.principal, request.request_id]
            if earliest != request.place(writer, ordinal):
                return "repeated_request"
        if not request.content_logged:
            return "no_content"
        if request.prompt_text is None and request.prompt_messages is None:
            return "prompt_tokens"
        return None

    def _unfit(self, candidate: _Candidate, request: _Request) -> str | None:
        """Why one candidate cannot be chosen."""
        finish = candidate.finish_reason
        truncated_is_fine = self._filters["keep_truncated"] and finish is FinishReason.LENGTH
        if finish not in (None, FinishReason.STOP) and not truncated_is_fine:
            return finish
        if candidate.status is not CandidateStatus.SCORED:
            return candidate.status
        wanted = self._filters["reward_model"]
        if wanted is not None and wanted not in reward_model_names(request.reward_models):
            return "other_reward_model"
        return None


_REPLAYABLE = (Outcome.OK, Outcome.PARTIAL)


def reward_model_names(models: Sequence[ModelRef]) -> tuple[str, str]:
    """What an ensemble (mostly of one) is called: `ID+…`, and exactly: `ID@REVISION+…`."""
    loose = "+".join(model.id for model in models)
    exact = "+".join(f"{model.id}@{model.revision}" if model.revision else model.id for model in models)
    return loose, exact


def with_writers(readers: Sequence[LogReader]) -> Iterator[tuple[int, LogReader]]:
    """Logs with the number of the first of their writers: writers are counted through all logs."""
    first_writer = 0
    for reader in readers:
        yield first_writer, reader
        first_writer += len(reader.writers)


def _earliest_answers(readers: Sequence[LogReader]) -> dict[tuple[str, str], _Place]:
    """Of each answered request, where its earliest answer is: a retry that met another replica is in two logs."""
    earliest: dict[tuple[str, str], _Place] = {}
    for first_writer, reader in with_writers(readers):
        for position, answered in reader.fields(_Answered):
            if answered.outcome in _REPLAYABLE:
                key = (answered.principal, answered.request_id)
                place = (answered.created_at, first_writer + position.writer, position.ordinal)
                earliest[key] = min(place, earliest.get(key, place))
    return earliest

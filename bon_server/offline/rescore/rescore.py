"""`bon rescore`: scores logged candidates with another reward model, as an added score under a name.

    read      records in the order of the log, of segments and spool, as they were at the start
    score     up to `CHUNK_REQUESTS` of a writer, their completions in order of length
    write     a file of scores for them, see `log/scores/files.py`

What has scores is not scored again, so a run that was killed goes on with the chunk it was at, and a log that has grown
costs what is new. Ordinals are cut at multiples of `CHUNK_REQUESTS`, so the same log makes the same files wherever a
run was cut off. Scored are candidates of any kind of record whose text is in the log and was sampled to its end (or
cut at max_tokens, as online); the others are `unscored`, and so are those of prompts that came as token ids.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from bon_server.config.settings import RewardConfig
from bon_server.config.specs import model_of, split_name
from bon_server.core.errors import LogError
from bon_server.core.protocols import RewardModel
from bon_server.core.types import CandidateStatus, ModelRef
from bon_server.log.read.reader import LogReader, refuse_damage
from bon_server.log.scores.files import (
    changing_scores,
    check_name,
    folder_of,
    overlapping,
    read_scores,
    score_files,
    score_model,
    write_model,
    write_scores,
)
from bon_server.log.segments.where import Ordinals, Where
from bon_server.models.reward import ensemble
from bon_server.models.starting import check_reward, start_reward
from bon_server.offline.rescore.rescorable import Key, RescorableRequest, as_row, score_all
from bon_server.system.files import make_folder
from bon_server.system.lock import WriterLock

CHUNK_REQUESTS = 1_024
"""At most so many requests are scored and written at once: what a kill costs."""
CHUNK_CHARS = 64 << 20
"""And about so many characters of completions: what is held in memory."""


@dataclass(frozen=True, slots=True)
class RescoreOptions:
    """One rescoring."""

    log: Path
    reward: RewardConfig
    """One model, or several that score together."""
    name: str | None = None
    """Of the added score. None: the name that the model was given, or else one made of its id."""


class Rescored(TypedDict):
    """The document of `bon rescore --json`."""

    name: str
    reward_models: list[dict[str, str]]
    """name, id and revision of each."""
    requests: int
    """Of the log."""
    candidates: int
    """Theirs."""
    already: int
    """Candidates that were rescored before."""
    scored: int
    """Candidates that got a reward in this run."""
    by_status: dict[str, int]
    """All candidates by what is known of them under the name now; every status is listed."""


@dataclass(frozen=True, slots=True)
class _Identity:
    request_id: str
    attempt: int = 1
    principal: str = ""


def count_candidates(log: Path) -> int:
    """Of a log, for a progress bar. What cannot be read is not counted. Raises `LogError` when there is none."""
    with LogReader(log, lambda error: None) as reader:
        return sum(len(batch["candidates"].flatten()) for batch in reader.batches(["candidates.index"]))


def rescore(
    options: RescoreOptions,
    on_candidates: Callable[[int], None] = lambda candidates: None,
    on_damage: Callable[[LogError], None] = refuse_damage,
) -> Rescored:
    """Scores what has no score under the name yet; blocks. Works while a server writes the log.

    on_candidates: called with the number of candidates that are done. on_damage: called with what cannot be read, which
    is left out when it returns.

    Raises `ConfigError` and `StartupError` for a name or model that cannot be, `LogLocked` while another process
    rescores under this name, `LogError` when the log cannot be read or its scores under this name are of another
    model, and the `RequestError`s of a model that fails, other than at single completions; chunks that were done stay.
    """
    return asyncio.run(_rescore(options, on_candidates, on_damage))


async def _rescore(
    options: RescoreOptions, on_candidates: Callable[[int], None], on_damage: Callable[[LogError], None]
) -> Rescored:
    name = options.name or default_name(options.reward.models)
    check_name(name)
    with LogReader(options.log, on_damage) as reader:
        await check_reward(options.reward)
        make_folder(folder_of(options.log, name))
        lock = WriterLock(folder_of(options.log, name))
        try:
            model = await start_reward(options.reward)
            try:
                _claim(options.log, name, model.refs)
                return await _Rescoring(options.log, name, model, reader, on_candidates).run()
            finally:
                await model.close()
        finally:
            lock.release()


def default_name(models: Sequence[str]) -> str:
    """`helpful=org/model` → `helpful`; `org/model` → `org-model`; of several: `ensemble`."""
    if len(models) != 1:
        return ensemble.NAME
    given, spec = split_name(models[0])
    if given != "default":
        return given
    spec = model_of(spec)
    if Path(spec).is_dir():
        spec = Path(spec).resolve().name
    return re.sub(r"[^A-Za-z0-9._]+", "-", spec).strip("-.")[:100]


def _claim(log: Path, name: str, models: Sequence[ModelRef]) -> None:
    """The scores of a name are of one model: the first one. Raises `LogError` for another."""
    there = score_model(log, name)
    if there is None:
        write_model(log, name, models)
    elif _exact(there) != _exact(models):
        raise LogError(
            f"{folder_of(log, name)} holds scores of {_told(there)}, and this is {_told(models)}; choose another --name"
        )


def _exact(models: Sequence[ModelRef]) -> list[tuple[str, str]]:
    """Names are not compared: a single model may be called anything."""
    return [(model.id, model.revision) for model in models]


def _told(models: Sequence[ModelRef]) -> str:
    return " + ".join(f"{model.id} at revision {model.revision or '(none)'}" for model in models)


class _Row(NamedTuple):
    """A record that has no scores yet."""

    ordinal: int
    request: RescorableRequest


class _Rescoring:
    """One run."""

    def __init__(
        self, log: Path, name: str, model: RewardModel, reader: LogReader, on_candidates: Callable[[int], None]
    ) -> None:
        self._log = log
        self._name = name
        self._model = model
        self._reader = reader
        self._on_candidates = on_candidates
        self._files = score_files(log, name)
        self._requests = self._done = self._already = self._scored = 0
        self._statuses: Counter[str] = Counter()

    async def run(self) -> Rescored:
        """Reads the log to its end."""
        for writer, rows in self._chunks():
            await self._score(writer, rows)
        return Rescored(
            name=self._name,
            reward_models=[{"name": ref.name, "id": ref.id, "revision": ref.revision} for ref in self._model.refs],
            requests=self._requests,
            candidates=self._statuses.total(),
            already=self._already,
            scored=self._scored,
            by_status={status.value: self._statuses[status.value] for status in CandidateStatus},
        )

    def _chunks(self) -> Iterator[tuple[str, list[_Row]]]:
        """Records without scores, with their writer."""
        chunk: list[_Row] = []
        chars, cell, there = 0, (-1, -1), dict[int, tuple[Key, list[str]]]()
        for position, request in self._reader.fields(RescorableRequest):
            writer, number = position.writer, (position.ordinal - 1) // CHUNK_REQUESTS
            if (writer, number) != cell or chars >= CHUNK_CHARS:
                if chunk:
                    yield self._reader.writers[cell[0]], chunk
                chunk, chars = [], 0
            if (writer, number) != cell:
                cell, there = (writer, number), self._there(self._reader.writers[writer], number)
            self._requests += 1
            if position.ordinal in there:
                self._count_there(position.ordinal, request, *there[position.ordinal])
            else:
                chunk.append(_Row(position.ordinal, request))
                chars += sum(len(one.text) for one in request.candidates)
        if chunk:
            yield self._reader.writers[cell[0]], chunk

    def _there(self, writer: str, number: int) -> dict[int, tuple[Key, list[str]]]:
        """By ordinal: whose scores there are, and the status of each."""
        first, last = number * CHUNK_REQUESTS + 1, (number + 1) * CHUNK_REQUESTS
        found = {}
        for file in overlapping(self._files, writer, first, last):
            for row in read_scores(file.path).to_pylist():
                key = (row["principal"], row["request_id"], row["attempt"])
                found[row["ordinal"]] = key, [one["status"] for one in row["candidates"]]
        return found

    def _count_there(self, ordinal: int, request: RescorableRequest, key: Key, statuses: list[str]) -> None:
        if key != request.key or len(statuses) != len(request.candidates):
            raise LogError(f"{folder_of(self._log, self._name)}: row {ordinal} is of another record than the log's")
        self._already += len(statuses)
        self._statuses.update(statuses)
        self._advance(len(statuses))

    def _advance(self, candidates: int) -> None:
        self._done += candidates
        self._on_candidates(self._done)

    async def _score(self, writer: str, rows: Sequence[_Row]) -> None:
        questions = [list(row.request.questions()) for row in rows]
        asked = [one for some in questions for one in some if one is not None]
        scores = await score_all(self._model, asked, self._advance)
        self._advance(sum(map(len, questions)) - len(set(asked)))
        made = [
            as_row(row.ordinal, row.request, [None if one is None else scores[one] for one in some])
            for row, some in zip(rows, questions, strict=True)
        ]
        for row in self._write(writer, made):
            statuses = [one["status"] for one in row["candidates"]]
            self._statuses.update(statuses)
            self._scored += statuses.count(CandidateStatus.SCORED.value)

    def _write(self, writer: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those whose records are still there: what was erased meanwhile must not come back as scores."""
        with changing_scores(self._log):
            there = self._still_there(writer, [row["ordinal"] for row in rows])
            left = [row for row in rows if row["ordinal"] in there]
            if left:
                write_scores(self._log, self._name, writer, left)
        return left

    def _still_there(self, writer: str, ordinals: Sequence[int]) -> set[int]:
        where = Where(after_ordinal=min(ordinals) - 1, ordinals=Ordinals(ordinals))
        with LogReader(self._log, lambda error: None) as reader:
            fields = reader.fields(_Identity, where)
            return {position.ordinal for position, _ in fields if reader.writers[position.writer] == writer}

"""Logs as a stream of tables, with what must not be mixed kept apart and what is left out counted.

Taken are records of what a policy sampled (kinds `generate` and `import`); scored completions of other origin are left
out. A request that is in several logs, because a retry met another replica, counts once, by its earliest answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bon_server.core.errors import ConfigError, LogError
from bon_server.core.types import Kind, ModelRef, Outcome, SelectionReason
from bon_server.evaluate.arrow_columns import (
    RESERVED,
    bools,
    is_one_of,
    models_of,
    number_of,
    part_names,
    parts_of,
    requests_of,
    spread,
    with_scores,
)
from bon_server.evaluate.table import Table, merged
from bon_server.log.read.reader import LogReader, refuse_damage
from bon_server.log.record import reward_model_names
from bon_server.log.scores.files import score_model, score_names
from bon_server.log.scores.joined import KEY, AddedScores

_KINDS = (Kind.GENERATE, Kind.IMPORT)
_STOPPED_REASONS = (SelectionReason.THRESHOLD, SelectionReason.ADAPTIVE, SelectionReason.DEADLINE)
_STOPPED_OUTCOMES = (Outcome.FAILED, Outcome.CANCELLED)
_BUDGETS = ("stop_at_reward", "price_per_candidate", "prune_fraction")
BATCH_BYTES = 8 << 20
"""Of Arrow data that is worked on at once: with twice as much, most of the time goes into getting memory."""
_ALWAYS = ("kind", "outcome", "selection_reason", "reward_models")


@dataclass(frozen=True, slots=True)
class LogSource:
    """Which logs, and how they are read."""

    logs: tuple[Path, ...]
    merge: bool = False
    """Whether requests of one prompt count as one; holds every number of the log in memory."""
    reward_model: str | None = None
    """Only rewards of this model count: `ID` or `ID@REVISION`. Needed when a log holds several."""
    on_records: Callable[[int], None] = lambda records: None
    """Called with the number of records read so far."""
    on_damage: Callable[[LogError], None] = refuse_damage
    """Called with what cannot be read, which is left out when it returns."""


@dataclass(slots=True)
class ReadCounts:
    """What was read; complete when the stream has ended."""

    requests: int = 0
    candidates: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Requests by the reason why they do not take part."""
    reward_models: set[str] = field(default_factory=set)
    """`ID@REVISION` of who gave the rewards that take part."""
    parts: set[str] = field(default_factory=set)
    """Names of parts of rewards, as far as they were looked for."""
    scores: dict[str, str] = field(default_factory=dict)
    """Added scores that take part, by name: `ID@REVISION` of who gave them."""


def tables(
    source: LogSource, numbers: Sequence[str], seen: ReadCounts, columns: Sequence[str] = (), with_prompts: bool = True
) -> Iterator[Table]:
    """The requests of the logs, batch by batch, or all at once where requests are merged.

    Args:
        numbers: which numbers of candidates, see `arrow_columns`.
        columns: which columns of requests, as the log names them; merged requests have none.
        with_prompts: whether requests of one prompt are told from others; merged ones always are.

    Raises:
        ConfigError: no log, or one twice.
        LogError: a log cannot be read, rewards are of different reward models, or no candidate has a number of
            that name.
    """
    if not source.logs:
        raise ConfigError("log: none given; at least one folder is needed")
    if len({log.resolve() for log in source.logs}) < len(source.logs):
        raise ConfigError(f"log: {', '.join(map(str, source.logs))} given; each folder may be named once")
    prompts = ("prompt_hash",) if with_prompts or source.merge else ()
    streamed = _stream(source, tuple(dict.fromkeys(numbers)), seen, tuple(columns), prompts)
    if not source.merge:
        yield from streamed
    else:
        whole = list(streamed)
        for stopped in (False, True):
            some = [table.take(table.stopped == stopped) for table in whole if (table.stopped == stopped).any()]
            if some:
                yield merged(some)


def _stream(
    source: LogSource, numbers: tuple[str, ...], seen: ReadCounts, columns: tuple[str, ...], prompts: tuple[str, ...]
) -> Iterator[Table]:
    found = dict.fromkeys(numbers, False)
    with ExitStack() as stack:
        readers = [stack.enter_context(LogReader(log, source.on_damage)) for log in source.logs]
        seen.scores |= _scorers(readers, numbers)
        logged = (name == "reward" or name not in (*RESERVED, *seen.scores) for name in numbers)
        by_record = not seen.scores or any(logged)
        repeats = repeats_in(readers) if sum(map(_writers, readers)) > 1 else None
        for reader in readers:
            batches = _with_scores(reader, source, _columns(numbers, (*columns, *prompts), repeats), list(seen.scores))
            for batch in _together(batches):
                seen.requests += batch.num_rows
                source.on_records(seen.requests)
                kept = _kept(batch, source, seen, repeats, by_record)
                if kept.num_rows:
                    yield _table(kept, found, columns, seen)
    missing = [name for name, there in found.items() if not there and name not in RESERVED]
    if missing and seen.candidates:
        added = {name for log in source.logs for name in score_names(log)}
        there = ", ".join(sorted(seen.parts | added)) or "none"
        raise LogError(
            f"{missing[0]}: no candidate has a part of its reward, or an added score, of that name; there are: {there}"
        )


def _scorers(readers: Sequence[LogReader], numbers: Sequence[str]) -> dict[str, str]:
    """Of those of the numbers that are added scores: who gave them. Raises `LogError` for several."""
    found: dict[str, str] = {}
    for name in numbers:
        told = [None if models is None else reward_model_names(models)[1] for models in _models(readers, name)]
        if len(set(told)) > 1:
            names = " and ".join(
                f"{one or 'not rescored'} in {reader.directory}" for one, reader in zip(told, readers, strict=True)
            )
            raise LogError(f"{name}: scores of different reward models cannot be compared: {names}; rescore the logs")
        if told[0] is not None:
            found[name] = told[0]
    return found


def _models(readers: Sequence[LogReader], name: str) -> list[tuple[ModelRef, ...] | None]:
    return [None if name in RESERVED else score_model(reader.directory, name) for reader in readers]


def _with_scores(reader: LogReader, source: LogSource, columns: list[str], names: Sequence[str]) -> Iterator[Any]:
    """Batches, with a column for each added score."""
    added = AddedScores(reader.directory, source.on_damage)
    for writer, batch in reader.batches_by_writer([*KEY, *columns] if names else columns):
        yield with_scores(batch, added, writer, names) if names else batch


def _writers(reader: LogReader) -> int:
    """How many writers have records in a log."""
    return len({writer for writer, _ in reader.parts_by_writer()} | ({reader.own_writer} if reader.unsealed else set()))


def _together(batches: Iterator[Any]) -> Iterator[Any]:
    """The same rows in larger batches: the work on a batch costs milliseconds however few rows it has."""
    waiting: list[Any] = []
    waiting_bytes = 0
    for batch in batches:
        waiting.append(batch)
        waiting_bytes += batch.nbytes
        if waiting_bytes >= BATCH_BYTES:
            yield from _one(waiting)
            waiting, waiting_bytes = [], 0
    yield from _one(waiting)


def _one(batches: list[Any]) -> Iterator[Any]:
    if batches:
        yield from pa.Table.from_batches(batches).combine_chunks().to_batches()


def _columns(numbers: tuple[str, ...], columns: tuple[str, ...], repeats: Repeats | None) -> list[str]:
    of_candidates = [part for name in (*numbers, "reward") for part in parts_of(name)]
    budget = [f"budget.{name}" for name in _BUDGETS]
    logged = ["content_logged"] if {"length", "duplicate"} & set(numbers) else []
    retried = ["request_id", "principal", "created_at"] if repeats is not None else []
    return sorted({*_ALWAYS, *budget, *of_candidates, *logged, *retried, *columns})


def _kept(batch: Any, source: LogSource, seen: ReadCounts, repeats: Repeats | None, by_record: bool) -> Any:
    """The requests that take part."""
    right = is_one_of(batch.column("kind"), _KINDS)
    for kind in _where(batch, ~right).column("kind").to_pylist() if not right.all() else ():
        seen.left_out[f"kind_{kind}"] += 1
    batch = _where(batch, right)
    if repeats is not None:
        first = repeats.keeps(batch)
        seen.left_out["repeated_request"] += len(first) - int(first.sum())
        batch = _where(batch, first)
    return _of_one_reward_model(batch, source, seen, by_record)


def _of_one_reward_model(batch: Any, source: LogSource, seen: ReadCounts, by_record: bool) -> Any:
    """by_record: whether logged rewards are compared, not only added scores."""
    models = models_of(batch.column("reward_models"))
    if source.reward_model is not None:
        right = models.named(source.reward_model)
        seen.left_out["other_reward_model"] += len(right) - int(right.sum())
        batch, models = _where(batch, right), models.where(right)
    if not by_record:
        seen.reward_models.update(seen.scores.values())
        return batch
    finite = np.isfinite(number_of(batch, "reward"))
    several = len(models.names) > 1
    scored = np.unique(models.which[requests_of(batch)[finite]]).tolist() if several else range(int(finite.any()))
    seen.reward_models.update(models.names[number].exact for number in scored)
    if len(seen.reward_models) > 1:
        names = " and ".join(name or "(not named)" for name in sorted(seen.reward_models))
        raise LogError(
            f"rewards of different reward models cannot be compared: {names};"
            " choose one with --reward-model, or rescore the log"
        )
    return batch


def _table(batch: Any, found: dict[str, bool], columns: tuple[str, ...], seen: ReadCounts) -> Table:
    request = requests_of(batch)
    seen.candidates += len(request)
    numbers = {name: number_of(batch, name) for name in found}
    for name, values in numbers.items():
        found[name] = found[name] or bool(np.isfinite(values).any())
        if not found[name] and name not in RESERVED:
            seen.parts.update(part_names(batch))
    return Table(
        prompt=_prompts(batch),
        stopped=_stopped(batch),
        request=request,
        numbers=numbers,
        columns={name: batch.column(name).to_numpy(zero_copy_only=False) for name in columns},
    )


def _prompts(batch: Any) -> NDArray[np.uint64]:
    if "prompt_hash" not in batch.schema.names:
        return np.zeros(batch.num_rows, dtype=np.uint64)
    return spread(batch.column("prompt_hash"))


def _stopped(batch: Any) -> NDArray[np.bool_]:
    """(m,) whether a budget, a deadline, a caller or a failure decided which candidates there are."""
    stopped = is_one_of(batch.column("selection_reason"), _STOPPED_REASONS)
    stopped |= is_one_of(batch.column("outcome"), _STOPPED_OUTCOMES)
    budget = batch.column("budget")
    for name in _BUDGETS:
        stopped |= bools(pc.and_(budget.is_valid(), budget.field(name).is_valid()))
    return stopped


def _where(batch: Any, mask: NDArray[np.bool_]) -> Any:
    return batch if mask.all() else batch.filter(pa.array(mask))


@dataclass(slots=True)
class Repeats:
    """Which answers were given again elsewhere."""

    requests: NDArray[np.uint64]
    """(r,) rising identities of the requests with several answers."""
    earliest_us: NDArray[np.int64]
    """(r,) when the earliest answer of each began."""
    taken: NDArray[np.bool_]
    """(r,) whether it was kept already; a copied log has it twice with one time."""

    def keeps(self, batch: Any) -> NDArray[np.bool_]:
        """(m,) whether a request of the next batch counts; those that were not answered do."""
        keeps = np.ones(batch.num_rows, dtype=np.bool_)
        if not len(self.requests):
            return keeps
        requests, times = _answers(batch)
        place = np.minimum(np.searchsorted(self.requests, requests), len(self.requests) - 1)
        for row in np.flatnonzero((self.requests[place] == requests) & _answered(batch)).tolist():
            of = place[row]
            keeps[row] = times[row] == self.earliest_us[of] and not self.taken[of]
            self.taken[of] |= keeps[row]
        return keeps


def repeats_in(readers: Sequence[LogReader]) -> Repeats:
    """Reads ids and times of all logs, and holds 16 bytes for each answer."""
    requests: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    times: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    for reader in readers:
        for batch in reader.batches(["request_id", "principal", "created_at", "outcome"]):
            answered = _answered(batch)
            asked, began = _answers(batch)
            requests.append(asked[answered])
            times.append(began[answered])
    request, time = np.concatenate(requests), np.concatenate(times)
    order = np.lexsort((time, request))
    request, time = request[order], time[order]
    again = np.zeros(len(request), dtype=np.bool_)
    again[:-1] = request[1:] == request[:-1]
    first = again.copy()
    first[1:] &= ~again[:-1]
    return Repeats(request[first], time[first], np.zeros(int(first.sum()), dtype=np.bool_))


def _answers(batch: Any) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """(m,) who asked what, as one number, and when, in microseconds."""
    pairs = zip(batch.column("principal").to_pylist(), batch.column("request_id").to_pylist(), strict=True)
    numbers = [
        int.from_bytes(blake2b(f"{principal or ''}\0{request}".encode(), digest_size=8).digest())
        for principal, request in pairs
    ]
    return np.array(numbers, dtype=np.uint64), _microseconds(batch.column("created_at"))


def _microseconds(times: Any) -> NDArray[np.int64]:
    return np.asarray(times.cast(pa.int64()).to_numpy(zero_copy_only=False), dtype=np.int64)


def _answered(batch: Any) -> NDArray[np.bool_]:
    wanted = pa.array([str(Outcome.OK), str(Outcome.PARTIAL)])
    return np.asarray(pc.is_in(batch.column("outcome"), wanted).to_numpy(zero_copy_only=False), dtype=np.bool_)

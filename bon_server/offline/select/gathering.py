"""First stage of a selection: every candidate that may be chosen, without its text, and a count of the others.

Two things may have to be known of all logs before it:

    answers, repeated   with several writers: requests that more than one of them answered, since a client that tries
                        again may meet another replica. The earliest answer counts and the others are left out. Found
                        by map and merge: digests of caller and request id are shuffled, with time and place
    measure, scales     with `normalise`: mean and standard deviation of the rewards of each reward model. Sums are
                        exact and rounded once, at the end, so that they do not depend on the order of reading

`gather` then reads only the columns that the filters and the rule look at. Of requests whose prompt has others
somewhere, only what the rule could still pick goes on (`rules.keep`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bon_server.core.errors import LogError
from bon_server.core.selection import random_priority
from bon_server.core.types import Outcome
from bon_server.log.segments.columns import conform, prune
from bon_server.log.segments.where import Ordinals
from bon_server.offline.select import eligible
from bon_server.offline.select.eligible import (
    CandidateColumns,
    Models,
    PolicyColumn,
    columns,
    exact_name,
    lengths_of,
    prompt_forms,
    reasons,
    rewards_of,
)
from bon_server.offline.select.inputs import measure_file
from bon_server.offline.select.plan import File, SelectionPlan
from bon_server.offline.select.rows import (
    CANDIDATE,
    KEY,
    Rows,
    empty,
    firsts,
    prompt_keys,
    read_runs,
    request_draws,
    request_keys,
    request_places,
    sort_by,
    text_keys,
    write_runs,
)
from bon_server.offline.select.rules import Groups, keep

ANSWER = np.dtype([("hi", "u8"), ("lo", "u8"), ("created_us", "i8"), ("writer", "i8"), ("ordinal", "i8")])
_COLUMNS = ("ordinal", "principal", "request_id", "outcome", "created_at")
_ANSWERED = (Outcome.OK, Outcome.PARTIAL)


def _answers_file(plan: SelectionPlan, task: int) -> Path:
    return plan.work / f"answers-{task:05d}.answers"


def _repeated_file(plan: SelectionPlan, task: int) -> Path:
    return plan.work / f"repeated-{task:05d}.places"


def answers(plan: SelectionPlan, task: int) -> dict[str, Any]:
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


def repeated(plan: SelectionPlan, task: int) -> dict[str, Any]:
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


def repeated_places(plan: SelectionPlan, writer: int, ordinals: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,) whether the request there was answered earlier elsewhere."""
    if not plan.repeated or not len(ordinals):
        return np.zeros(len(ordinals), dtype=np.bool_)
    first, last = plan.range_of(0, np.array([writer, writer]), np.array([ordinals.min(), ordinals.max()])).tolist()
    files = [_repeated_file(plan, number) for number in range(plan.bucket_tasks)]
    later = read_runs(files, ANSWER, plan.ranges[-1], first, last)
    found: NDArray[np.bool_] = np.isin(ordinals, later["ordinal"][later["writer"] == writer])
    return found


def candidates_file(plan: SelectionPlan, task: int) -> Path:
    """The candidates that a task found, by prompt."""
    return plan.work / f"gather-{task:05d}.candidates"


def prompts_file(plan: SelectionPlan, task: int) -> Path:
    """The prompts that a task saw, each once."""
    return plan.work / f"gather-{task:05d}.prompts"


@dataclass(slots=True)
class GatheringCounts:
    """What a task counts."""

    requests: int = 0
    candidates: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    models: Counter[tuple[tuple[str, str, str], ...]] = field(default_factory=Counter)
    """Candidates that can be chosen by who scored them."""
    policies: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The same by who sampled them."""
    damage: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "requests": self.requests,
            "candidates": self.candidates,
            "dropped": dict(self.dropped),
            "models": [[list(map(list, refs)), count] for refs, count in self.models.items()],
            "policies": [[*policy, count] for policy, count in self.policies.items()],
            "damage": self.damage,
        }


def gather(plan: SelectionPlan, task: int) -> dict[str, Any]:
    """Writes the candidates and prompts of some files; returns what it counted, and digests that were not known."""
    seen = GatheringCounts()
    found, prompts, digests = [empty(CANDIDATE)], [empty(KEY)], {}
    for number in range(*plan.tasks[task]):
        file = plan.files[number]
        for batch in batches(plan, file, columns_for(plan), seen.damage):
            some, keys = _from_batch(plan, file, batch, seen)
            found.append(some)
            prompts.append(keys)
        if file.sha256 is None:
            digests[file.name] = measure_file(file.part.path)
    candidates, keys = np.concatenate(found), sort_by(np.concatenate(prompts), "hi", "lo")
    if plan.rule.is_overall and not plan.filters.need_whole_prompts:
        candidates = keep(plan.rule, candidates, Groups.at(firsts(candidates, "writer", "ordinal")))
    keys = keys[firsts(keys, "hi", "lo")]
    write_runs(candidates_file(plan, task), candidates, plan.bucket(candidates), plan.buckets)
    write_runs(prompts_file(plan, task), keys, plan.bucket(keys), plan.buckets)
    return seen.summary() | {"digests": digests}


def columns_for(plan: SelectionPlan) -> list[str]:
    """What is read of a record."""
    names = columns(plan.filters, plan.format) + eligible.reward_columns(plan)
    if plan.rule.needs_random:
        names += ["principal", "request_id", "attempt"]
    if _needs_text(plan):
        names.append("candidates.text")
    return names


def _needs_text(plan: SelectionPlan) -> bool:
    return plan.rule.needs_text or plan.filters.duplicates != "keep"


def batches(
    plan: SelectionPlan, file: File, names: list[str], damage: list[str], only: Ordinals | None = None
) -> Iterator[Any]:
    """The rows of a file that are to be read, with these columns. damage: gets what cannot be read. only: of these."""
    schema = prune(names)

    def note(error: LogError) -> None:
        damage.append(str(error))

    for batch in file.part.batches(schema, replace(plan.where(file), ordinals=only), note):
        yield conform(batch, schema)


@dataclass(slots=True)
class Judged:
    """The candidates of a batch and which of them may be chosen."""

    candidates: CandidateColumns
    models: Models
    policies: PolicyColumn
    can: NDArray[np.intp]
    """Positions of those that may be."""
    dropped: Counter[str]


def judge(plan: SelectionPlan, file: File, batch: Any, damage: list[str]) -> Judged:
    """Applies the filters that look at one candidate at a time. damage: see `rewards_of`."""
    lengths = lengths_of(batch["candidates"])
    candidates = CandidateColumns(batch, lengths, rewards_of(plan, file, batch, lengths, damage))
    models, policies = _models(plan, file, batch), PolicyColumn.in_batch(candidates)
    repeated = repeated_places(plan, file.writer, batch["ordinal"].to_numpy())
    why = reasons(candidates, plan.filters, plan.format, repeated, models, policies)
    return Judged(candidates, models, policies, np.flatnonzero(why.none), why.counts())


def _models(plan: SelectionPlan, file: File, batch: Any) -> Models:
    """Whose rewards are compared."""
    name, scorers = plan.filters.reward, plan.log_of(file.writer).scorers
    if name is None:
        return Models.in_batch(batch)
    if scorers is None:
        return Models.in_batch(batch).behind(name)
    return Models(np.zeros(batch.num_rows, dtype=np.int64), [scorers])


def _from_batch(plan: SelectionPlan, file: File, batch: Any, seen: GatheringCounts) -> tuple[Rows, Rows]:
    """Candidates that go on, and the prompts of all requests."""
    judged = judge(plan, file, batch, seen.damage)
    candidates, can = judged.candidates, judged.can
    seen.requests += batch.num_rows
    seen.candidates += len(candidates)
    seen.dropped += judged.dropped
    of_models, of_policies = judged.models.of[candidates.row[can]], judged.policies.of[can]
    for number, count in enumerate(np.bincount(of_models).tolist()):
        seen.models[judged.models.refs[number]] += count
    for number, count in enumerate(np.bincount(of_policies).tolist()):
        policy = judged.policies.names[number]
        if policy is not None and count:
            seen.policies[policy] += count
    prompts = prompt_keys(batch["prompt_hash"])
    rows = _rows(plan, file, judged, prompts)
    if not plan.filters.need_whole_prompts:
        rows = keep(plan.rule, rows, Groups.at(firsts(rows, "ordinal")))
    return rows, prompts


def _rows(plan: SelectionPlan, file: File, judged: Judged, prompts: Rows) -> Rows:
    candidates, can, batch = judged.candidates, judged.can, judged.candidates.batch
    row = candidates.row[can]
    ordinals = batch["ordinal"].to_numpy()
    rows = np.zeros(len(can), dtype=CANDIDATE)
    groups = prompts if plan.filters.merge else request_places(file.writer, ordinals)
    rows["hi"], rows["lo"] = groups["hi"][row], groups["lo"][row]
    rows["writer"], rows["ordinal"], rows["index"] = file.writer, ordinals[row], candidates.index[can]
    rows["form"] = prompt_forms(batch)[row]
    rows["value"] = _values(plan, judged)
    if plan.rule.needs_random:
        rows["random"] = random_priority(request_draws(plan.seed, batch)[row], rows["index"])
    if _needs_text(plan):
        texts = text_keys(candidates.field("text").take(pa.array(can)), plan.filters.duplicates == "normalised")
        rows["text_hi"], rows["text_lo"] = texts["hi"], texts["lo"]
    return rows


def _values(plan: SelectionPlan, judged: Judged) -> NDArray[np.float64]:
    """Rewards, normalised if that was asked for: 0 for all of a model that always gives the same."""
    rewards: NDArray[np.float64] = judged.candidates.reward[judged.can]
    if not plan.filters.normalise:
        return rewards
    scales = {name: (mean, deviation) for name, mean, deviation in plan.scales}
    own = np.array([scales.get(exact_name(refs), (0.0, 0.0)) for refs in judged.models.refs] or [(0.0, 0.0)])
    mean, deviation = own[judged.models.of[judged.candidates.row[judged.can]]].T
    normalised: NDArray[np.float64] = np.divide(
        rewards - mean, deviation, out=np.zeros(len(rewards)), where=deviation > 0
    )
    return normalised


Floats = NDArray[np.float64]
UNIT = 1 << 1126
"""Exact sums are whole numbers of 1/UNIT: the last bit of the smallest double."""
_HALF_BITS = 27


def measure(plan: SelectionPlan, task: int) -> dict[str, Any]:
    """Of some files: how many rewards each model gave to candidates that may be chosen, their sum, that of squares."""
    counts: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    squares: Counter[str] = Counter()
    for number in range(*plan.tasks[task]):
        file = plan.files[number]
        for batch in batches(plan, file, columns_for(plan), []):
            judged = judge(plan, file, batch, [])
            rewards = judged.candidates.reward[judged.can]
            of = judged.models.of[judged.candidates.row[judged.can]]
            for code, refs in enumerate(judged.models.refs):
                some = rewards[of == code]
                name = exact_name(refs)
                counts[name] += len(some)
                sums[name] += exact_sum(some)
                squares[name] += exact_sum_of_squares(some)
    return {name: [counts[name], sums[name], squares[name]] for name in counts}


def scales(measured: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, float, float], ...]:
    """Name, mean and standard deviation (of the whole, not of a sample) of each model."""
    totals: dict[str, list[int]] = {}
    for summary in measured:
        for name, values in summary.items():
            before = totals.get(name, [0, 0, 0])
            totals[name] = [one + other for one, other in zip(before, values, strict=True)]
    found = []
    for name, (count, total, square) in sorted(totals.items()):
        if count:
            mean = Fraction(total, count * UNIT)
            variance = Fraction(square, count * UNIT) - mean * mean
            found.append((name, float(mean), math.sqrt(variance)))
    return tuple(found)


def exact_sum(values: Floats) -> int:
    """Sum of finite doubles, in 1/UNIT."""
    mantissas, exponents = np.frexp(values)
    whole = np.ldexp(mantissas, 53).astype(np.int64)
    found, of = np.unique(exponents, return_inverse=True)
    # Halves of mantissas add up exactly as doubles, up to 2**26 of them.
    high = np.bincount(of, weights=(whole >> _HALF_BITS).astype(np.float64))
    low = np.bincount(of, weights=(whole & ((1 << _HALF_BITS) - 1)).astype(np.float64))
    shift = UNIT.bit_length() - 1 - 53
    return sum(
        ((int(above) << _HALF_BITS) + int(below)) << (exponent + shift)
        for exponent, above, below in zip(found.tolist(), high.tolist(), low.tolist(), strict=True)
    )


def exact_sum_of_squares(values: Floats) -> int:
    """Sum of the squares of finite doubles, in 1/UNIT. Raises `LogError` for rewards too large to be squared."""
    if len(values) and np.abs(values).max() > 1e150:
        raise LogError("rewards above 1e150 cannot be normalised")
    mantissas, exponents = np.frexp(values)
    high = np.ldexp(np.rint(np.ldexp(mantissas, 26)), exponents - 26)
    low = values - high
    # Products of halves are exact, which squares are not.
    return exact_sum(high * high) + 2 * exact_sum(high * low) + exact_sum(low * low)

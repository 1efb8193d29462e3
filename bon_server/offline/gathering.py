"""First stage: every candidate that may be chosen, without its text, and a count of the others.

Only the columns that the filters and the rule look at are read. Of requests whose prompt has others somewhere, only
what the rule could still pick goes on (`rules.keep`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bon_server.errors import LogError
from bon_server.log.columns import conform, prune
from bon_server.log.where import Ordinals
from bon_server.offline import named_reward
from bon_server.offline.digests import prompt_keys, request_draws, request_places, text_keys
from bon_server.offline.eligible import (
    Candidates,
    Models,
    Policies,
    columns,
    exact_name,
    lengths_of,
    prompt_forms,
    reasons,
)
from bon_server.offline.inputs import measure_file
from bon_server.offline.named_reward import rewards_of
from bon_server.offline.plan import File, Plan
from bon_server.offline.repeated import repeated_places
from bon_server.offline.rows import CANDIDATE, KEY, Rows, empty, firsts, sort_by
from bon_server.offline.rules import Groups, keep
from bon_server.offline.runs import write_runs
from bon_server.selection import random_priority


def candidates_file(plan: Plan, task: int) -> Path:
    """The candidates that a task found, by prompt."""
    return plan.work / f"gather-{task:05d}.candidates"


def prompts_file(plan: Plan, task: int) -> Path:
    """The prompts that a task saw, each once."""
    return plan.work / f"gather-{task:05d}.prompts"


@dataclass(slots=True)
class Seen:
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


def gather(plan: Plan, task: int) -> dict[str, Any]:
    """Writes the candidates and prompts of some files; returns what it counted, and digests that were not known."""
    seen = Seen()
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


def columns_for(plan: Plan) -> list[str]:
    """What is read of a record."""
    names = columns(plan.filters, plan.format) + named_reward.columns(plan)
    if plan.rule.needs_random:
        names += ["principal", "request_id", "attempt"]
    if _needs_text(plan):
        names.append("candidates.text")
    return names


def _needs_text(plan: Plan) -> bool:
    return plan.rule.needs_text or plan.filters.duplicates != "keep"


def batches(plan: Plan, file: File, names: list[str], damage: list[str], only: Ordinals | None = None) -> Iterator[Any]:
    """The rows of a file that are to be read, with these columns. damage: gets what cannot be read. only: of these."""
    schema = prune(names)

    def note(error: LogError) -> None:
        damage.append(str(error))

    for batch in file.part.batches(schema, replace(plan.where(file), ordinals=only), note):
        yield conform(batch, schema)


@dataclass(slots=True)
class Judged:
    """The candidates of a batch and which of them may be chosen."""

    candidates: Candidates
    models: Models
    policies: Policies
    can: NDArray[np.intp]
    """Positions of those that may be."""
    dropped: Counter[str]


def judge(plan: Plan, file: File, batch: Any, damage: list[str]) -> Judged:
    """Applies the filters that look at one candidate at a time. damage: see `rewards_of`."""
    lengths = lengths_of(batch["candidates"])
    candidates = Candidates(batch, lengths, rewards_of(plan, file, batch, lengths, damage))
    models, policies = _models(plan, file, batch), Policies.in_batch(candidates)
    repeated = repeated_places(plan, file.writer, batch["ordinal"].to_numpy())
    why = reasons(candidates, plan.filters, plan.format, repeated, models, policies)
    return Judged(candidates, models, policies, np.flatnonzero(why.none), why.counts())


def _models(plan: Plan, file: File, batch: Any) -> Models:
    """Whose rewards are compared."""
    name, scorers = plan.filters.reward, plan.log_of(file.writer).scorers
    if name is None:
        return Models.in_batch(batch)
    if scorers is None:
        return Models.in_batch(batch).behind(name)
    return Models(np.zeros(batch.num_rows, dtype=np.int64), [scorers])


def _from_batch(plan: Plan, file: File, batch: Any, seen: Seen) -> tuple[Rows, Rows]:
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


def _rows(plan: Plan, file: File, judged: Judged, prompts: Rows) -> Rows:
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


def _values(plan: Plan, judged: Judged) -> NDArray[np.float64]:
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

"""The kernel of a selection: an Arrow batch of records to its candidates, each with the reason against it, if any.

The reward to choose by is the logged one, an added score, or a part of the logged ones (`rewards_of`).

Of the reasons that hold, one counts, the first of:

    kind_score …        its record is of a kind that is not asked for
    repeated_request    the same request was answered earlier, in another log
    principal, tags     its record is not of a caller, or has not the tags, that are asked for
    no_content          its record was logged without prompt and completions
    prompt_tokens       its prompt came as token ids, which the export format cannot hold
    prompt_text         its prompt was a text to be continued, which the export format cannot hold
    length, …           its text is not complete: the finish reason
    unscored, …         it has no reward: the status
    not_rescored        it has no added score of that name: it came after `bon rescore`, or the file was left out
    other_reward_model  another reward model than the one asked for gave its reward
    policy              it is not of a policy that is asked for
    tokens, chars       its length is not within the bounds
    no_token_ids        its tokens, or those of its prompt, are not in the log; only where the format needs them
    predicate           the user's function said no

and later, when all of a prompt is together (`choosing.py`): `duplicate`, `min_n`, `min_spread`.

The predicate is a filter of the user's, `module:function`, called for each candidate that passed the others:

    def function(record: Record, candidate: Candidate) -> bool

It must not depend on anything but its arguments, or the selection cannot be made again. It runs with the rights of the
command, in several threads.

Failed and cancelled attempts take part: what they sampled to the end and scored is as good as any other sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bon_server.config.specs import import_module
from bon_server.core.errors import ConfigError
from bon_server.core.types import CandidateStatus, FinishReason, Kind
from bon_server.log.record import Record
from bon_server.log.scores.joined import KEY, NOT_THERE, STATUSES, join
from bon_server.log.segments.columns import SCHEMA, from_batch
from bon_server.offline.select.formats import FORMATS
from bon_server.offline.select.options import Filters
from bon_server.offline.select.plan import File, SelectionPlan
from bon_server.offline.select.rows import CHAT, TEXT, TOKENS
from bon_server.operator_code.guard import told

NOT_RESCORED = "not_rescored"
"""Instead of a status: the log has the added score, but not of this candidate."""
_NAMES = [*map(str, STATUSES), NOT_RESCORED]


@dataclass(frozen=True, slots=True)
class Rewards:
    """Of the candidates of a batch, (m,) each."""

    values: NDArray[np.float64]
    """NaN where there is none."""
    status: Any
    """Arrow strings: `CandidateStatus` or `NOT_RESCORED`."""


def rewards_of(plan: SelectionPlan, file: File, batch: Any, lengths: NDArray[np.int64], damage: list[str]) -> Rewards:
    """The rewards to choose by. lengths: (n,) candidates of each row. damage: gets files of scores left out."""
    name, flat = plan.filters.reward, batch["candidates"].flatten()
    if name is None:
        return Rewards(flat.field("reward").to_numpy(zero_copy_only=False), flat.field("status"))
    if file.scores is not None:
        values, codes = join(file.scores, batch, lengths, lambda _, error: damage.append(str(error)))
        positions = np.where(codes == NOT_THERE, len(STATUSES), codes).astype(np.int8)
        return Rewards(values, pa.DictionaryArray.from_arrays(positions, _NAMES).dictionary_decode())
    values = _part(flat.field("rewards"), name)
    scored = pa.array(np.isfinite(values), pa.bool_())
    return Rewards(values, pc.if_else(scored, str(CandidateStatus.SCORED), str(CandidateStatus.UNSCORED)))


def _part(rewards: Any, name: str) -> NDArray[np.float64]:
    """(m,) the value of a key in lists of keys with values, NaN where it is not."""
    lengths = rewards.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    entries = rewards.flatten()
    chosen = pc.equal(entries.field("key"), name).to_numpy(zero_copy_only=False)
    values = np.full(len(rewards), np.nan)
    values[np.repeat(np.arange(len(rewards)), lengths)[chosen]] = entries.field("value").to_numpy(False)[chosen]
    return values


def reward_columns(plan: SelectionPlan) -> list[str]:
    """The columns of a record that `rewards_of` looks at."""
    if plan.filters.reward is None:
        return []
    return [*KEY, "candidates.reward", "candidates.status", "candidates.rewards"]


@cache
def load_predicate(spec: str) -> Callable[..., Any]:
    """Raises `ConfigError` for what is not `module:function`, and `StartupError` when there is no such module."""
    module_name, separator, function_name = spec.partition(":")
    if not separator or not module_name or not function_name:
        raise ConfigError(f"predicate: {spec!r} given; expected module:function")
    function = getattr(import_module(f"predicate {spec!r}", module_name), function_name, None)
    if not callable(function):
        raise ConfigError(f"predicate: {spec!r} given; the module {module_name} has no function {function_name!r}")
    found: Callable[..., Any] = function
    return found


def says_no(
    spec: str, batch: Any, row: NDArray[np.int64], index: NDArray[np.int64], ask: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(m,) those candidates, of those in `ask`, that the function refuses.

    batch: (n,) whole records. row, index: (m,) which record, which of its candidates. Raises `ConfigError` when the
    function raises, naming the kind of error and not its message, which may quote a completion.
    """
    function = load_predicate(spec)
    refused = np.zeros(len(row), dtype=np.bool_)
    wanted = np.unique(row[ask])
    records = dict(from_batch(batch.take(pa.array(wanted)), Record)) if len(wanted) else {}
    ordinals = batch["ordinal"].to_pylist()
    for position in np.flatnonzero(ask).tolist():
        record = records[ordinals[row[position]]]
        try:
            refused[position] = not function(record, record.candidates[index[position]])
        except KeyboardInterrupt:
            raise  # the user's, at a terminal
        except BaseException as error:  # noqa: BLE001 -- the user's code may raise anything
            raise ConfigError(f"predicate {spec!r} raised {told(error)}, at row {record.ordinal}") from None
    return refused


Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]


def columns(filters: Filters, file_format: str) -> list[str]:
    """The columns of a record that the kernel looks at."""
    if filters.predicate is not None:
        return list(SCHEMA.names)
    names = ["ordinal", "kind", "prompt_hash", "prompt_text", "prompt_messages.role", "content_logged"]
    names += ["policy.id", "policy.revision", "reward_models", "candidates.policy_revision"]
    names += ["candidates.status", "candidates.reward", "candidates.finish_reason"]
    wanted = {
        "principal": filters.principals,
        "tags": filters.tags,
        "candidates.completion_tokens": filters.min_tokens is not None or filters.max_tokens is not None,
        "candidates.text": filters.min_chars is not None or filters.max_chars is not None,
    }
    if FORMATS[file_format].tokens:
        names += ["prompt_token_ids", "candidates.token_ids"]
    return names + [name for name, needed in wanted.items() if needed]


class CandidateColumns:
    """The candidates of a batch, request by request in index order: (m,) columns."""

    def __init__(self, batch: Any, lengths: Numbers, rewards: Rewards) -> None:
        self.batch = batch
        self.struct = batch["candidates"].flatten()
        self.row: Numbers = np.repeat(np.arange(batch.num_rows), lengths)
        """Of the batch."""
        self.index: Numbers = np.arange(len(self.row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        self.reward = rewards.values
        """To choose by; NaN where there is none."""
        self.status = rewards.status
        """What that reward says."""

    def __len__(self) -> int:
        return len(self.row)

    def field(self, name: str) -> Any:
        """(m,) Arrow array."""
        return self.struct.field(name)


@dataclass(slots=True)
class Models:
    """The reward models of the rows of a batch; several make one when they score together."""

    of: Numbers
    """(n,) which of `refs`."""
    refs: list[tuple[tuple[str, str, str], ...]]
    """(name, id, revision) of each."""

    @classmethod
    def in_batch(cls, batch: Any) -> Models:
        models = batch["reward_models"]
        lengths = lengths_of(models)
        flat = models.flatten()
        parts = [pc.fill_null(flat.field(name), "") for name in ("name", "id", "revision")]
        names = pc.binary_join_element_wise(*parts, "\x1f")
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        joined = pc.binary_join(pa.ListArray.from_arrays(offsets, names), "\x1e").dictionary_encode()
        of = joined.indices.to_numpy()
        _, rows = np.unique(of, return_index=True)
        refs = [
            tuple((one["name"] or "", one["id"] or "", one["revision"] or "") for one in models[row].as_py() or ())
            for row in rows.tolist()
        ]
        return cls(of, refs)

    def behind(self, name: str) -> Models:
        """Those of the part of this name; a part that was imported is of whoever gave the whole."""
        return Models(self.of, [tuple(one for one in refs if one[0] == name) or refs for refs in self.refs])


def loose_name(models: tuple[tuple[str, str, str], ...]) -> str:
    """`ID+…`, what an ensemble (mostly of one) is called."""
    return "+".join(model for _, model, _ in models)


def exact_name(models: tuple[tuple[str, str, str], ...]) -> str:
    """`ID@REVISION+…`"""
    return "+".join(f"{model}@{revision}" if revision else model for _, model, revision in models)


@dataclass(slots=True)
class PolicyColumn:
    """Who sampled the candidates of a batch."""

    of: Numbers
    """(m,) which of `names`."""
    names: list[tuple[str, str] | None]
    """(id, revision), None where the record names no policy."""

    @classmethod
    def in_batch(cls, candidates: CandidateColumns) -> PolicyColumn:
        policy = candidates.batch["policy"]
        ids = policy.field("id").dictionary_encode()
        own = pc.fill_null(candidates.field("policy_revision"), "")
        missing = pc.equal(own, "")
        if pc.any(missing).as_py():
            known = policy.field("revision").take(pa.array(candidates.row))
            own = pc.if_else(missing, pc.fill_null(known, ""), own)
        revisions = own.dictionary_encode()
        codes = ids.indices.fill_null(-1).to_numpy(zero_copy_only=False)[candidates.row]
        different = len(revisions.dictionary)
        found, of = np.unique(codes * different + revisions.indices.to_numpy(), return_inverse=True)
        named = ids.dictionary.to_pylist(), revisions.dictionary.to_pylist()
        names = [None if one < 0 else (named[0][one // different], named[1][one % different]) for one in found.tolist()]
        return cls(of, names)


class Reasons:
    """Why candidates cannot be chosen: (m,) codes, the first reason that was given."""

    def __init__(self, count: int) -> None:
        self._code = np.zeros(count, dtype=np.int16)
        self._names = [""]

    def mark(self, where: Mask, name: str) -> None:
        """where: (m,) those that it holds for; it counts for those without a reason so far."""
        if where.any():
            self._names.append(name)
            self._code[where & (self._code == 0)] = len(self._names) - 1

    @property
    def none(self) -> Mask:
        """(m,) those that can be chosen."""
        can: Mask = self._code == 0
        return can

    def counts(self) -> Counter[str]:
        """Candidates by reason."""
        found: Counter[str] = Counter()
        for name, count in zip(self._names, np.bincount(self._code, minlength=len(self._names)).tolist(), strict=True):
            if name and count:
                found[name] += count
        return found


def reasons(
    candidates: CandidateColumns,
    filters: Filters,
    file_format: str,
    repeated: Mask,
    models: Models,
    policies: PolicyColumn,
) -> Reasons:
    """repeated: (n,) the rows whose request was answered earlier elsewhere."""
    why, batch, row = Reasons(len(candidates)), candidates.batch, candidates.row
    for kind in Kind:
        if kind not in filters.kinds:
            why.mark(_equal(batch["kind"], kind)[row], f"kind_{kind}")
    why.mark(repeated[row], "repeated_request")
    if filters.principals:
        why.mark(~_is_in(pc.fill_null(batch["principal"], ""), filters.principals)[row], "principal")
    for key, value in filters.tags:
        why.mark(~_has_tag(batch["tags"], key, value)[row], "tags")
    why.mark(~pc.fill_null(batch["content_logged"], True).to_numpy(zero_copy_only=False)[row], "no_content")
    form = prompt_forms(batch)
    allowed = FORMATS[file_format].forms
    for number, name in ((TOKENS, "prompt_tokens"), (TEXT, "prompt_text")):
        if number not in allowed:
            why.mark((form == number)[row], name)
    _mark_unfit(why, candidates, filters)
    if filters.reward_model is not None:
        named = np.array([filters.reward_model in (loose_name(one), exact_name(one)) for one in models.refs] or [False])
        why.mark(~named[models.of[row]], "other_reward_model")
    if filters.policies:
        wanted = [one is not None and bool({one[0], "@".join(one)} & set(filters.policies)) for one in policies.names]
        why.mark(~np.array(wanted or [False])[policies.of], "policy")
    _mark_by_size(why, candidates, filters)
    if FORMATS[file_format].tokens:
        missing = (lengths_of(batch["prompt_token_ids"]) == 0)[row] | (lengths_of(candidates.field("token_ids")) == 0)
        why.mark(missing, "no_token_ids")
    if filters.predicate is not None:
        why.mark(says_no(filters.predicate, batch, row, candidates.index, why.none), "predicate")
    return why


def _mark_unfit(why: Reasons, candidates: CandidateColumns, filters: Filters) -> None:
    fine = (FinishReason.STOP, FinishReason.LENGTH) if filters.keep_truncated else (FinishReason.STOP,)
    _mark_values(why, candidates.field("finish_reason"), [one for one in FinishReason if one not in fine])
    unfit = [one for one in CandidateStatus if one is not CandidateStatus.SCORED]
    _mark_values(why, candidates.status, [*unfit, NOT_RESCORED])
    missing = np.isnan(candidates.reward)
    if filters.reward is None:
        missing &= ~candidates.field("reward").is_valid().to_numpy(False)
    why.mark(missing, "unscored")
    why.mark(~np.isfinite(candidates.reward), "non_finite")


def _mark_values(why: Reasons, strings: Any, values: list[Any]) -> None:
    found = pc.index_in(strings, value_set=pa.array([str(value) for value in values])).fill_null(-1)
    codes = found.to_numpy(zero_copy_only=False)
    for code, value in enumerate(values):
        why.mark(codes == code, str(value))


def _mark_by_size(why: Reasons, candidates: CandidateColumns, filters: Filters) -> None:
    for name, least, most in (
        ("tokens", filters.min_tokens, filters.max_tokens),
        ("chars", filters.min_chars, filters.max_chars),
    ):
        if least is None and most is None:
            continue
        sizes = candidates.field("completion_tokens") if name == "tokens" else pc.utf8_length(candidates.field("text"))
        counted = pc.fill_null(sizes, 0).to_numpy(zero_copy_only=False)
        why.mark((counted < (least or 0)) | (counted > (np.inf if most is None else most)), name)


def prompt_forms(batch: Any) -> NDArray[np.int32]:
    """(n,) positions in `rows.FORMS`."""
    text = batch["prompt_text"].is_valid().to_numpy(False)
    chat = batch["prompt_messages"].is_valid().to_numpy(False)
    return np.where(text, TEXT, np.where(chat, CHAT, TOKENS)).astype(np.int32)


def lengths_of(lists: Any) -> Numbers:
    """(n,) lengths of lists, 0 for null."""
    lengths: Numbers = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def _equal(strings: Any, value: str) -> Mask:
    return _is_in(strings, (str(value),))


def _is_in(strings: Any, values: tuple[str, ...]) -> Mask:
    found: Mask = pc.is_in(strings, value_set=pa.array(values)).to_numpy(zero_copy_only=False)
    return found


def _has_tag(tags: Any, key: str, value: str) -> Mask:
    flat = tags.flatten()
    hit = _equal(flat.field("key"), key) & _equal(flat.field("value"), value)
    rows = np.repeat(np.arange(len(tags)), lengths_of(tags))
    return np.bincount(rows[hit], minlength=len(tags)) > 0

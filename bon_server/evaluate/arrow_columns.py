"""Numbers of candidates out of Arrow batches of a log, and which reward models gave their rewards.

reward       of the reward model
length       characters of the text
tokens       sampled tokens; 0 says that nobody counted
logprob      of the text under the distribution sampled from, in nats
truncated    1 where max_tokens cut it, 0 where not
duplicate    1 where an earlier candidate of the request has the same text, 0 where not
other names  added scores (`bon rescore`), or else parts of the reward, `rewards`
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bon_server.core.types import FinishReason, LogprobKind, ModelRef
from bon_server.log.record import reward_model_names
from bon_server.log.scores.joined import AddedScores

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_PARTS = {
    "reward": ("reward",),
    "length": ("text",),
    "tokens": ("completion_tokens",),
    "logprob": ("logprob", "logprob_kind"),
    "truncated": ("finish_reason",),
    "duplicate": ("text",),
}
RESERVED = tuple(_PARTS)
_MIX = np.uint64(0x9E3779B97F4A7C15)


def parts_of(name: str) -> list[str]:
    """The columns of the log that a number is made of."""
    return [f"candidates.{part}" for part in _PARTS.get(name, ("rewards",))]


def requests_of(batch: Any) -> Ints:
    """(c,) the row in the batch of each candidate."""
    return np.repeat(np.arange(batch.num_rows), _lengths(batch.column("candidates")))


def number_of(batch: Any, name: str) -> Floats:
    """(c,) one number of every candidate, NaN where it has none."""
    candidates = batch.column("candidates").flatten()
    match name:
        case "reward":
            return floats(candidates.field("reward"))
        case "length":
            return np.where(_logged(batch), floats(pc.utf8_length(candidates.field("text"))), np.nan)
        case "tokens":
            tokens = floats(candidates.field("completion_tokens"))
            tokens[~(tokens > 0)] = np.nan
            return tokens
        case "logprob":
            sampled = _is(candidates.field("logprob_kind"), LogprobKind.SAMPLED)
            return np.where(sampled, np.minimum(floats(candidates.field("logprob")), 0.0), np.nan)
        case "truncated":
            reasons = candidates.field("finish_reason")
            known = bools(reasons.is_valid())
            return np.where(known, _is(reasons, FinishReason.LENGTH), np.nan)
        case "duplicate":
            return np.where(_logged(batch), _repeats(requests_of(batch), candidates.field("text")), np.nan)
    if _added(name) in batch.schema.names:
        return floats(batch.column(_added(name)).flatten())
    return _part(candidates.field("rewards"), name)


def with_scores(batch: Any, added: AddedScores, writer: str, names: Sequence[str]) -> Any:
    """The batch with a column more for each of these added scores; it must have the columns `KEY`."""
    lists = batch.column("candidates")
    lengths = _lengths(lists)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    for name in names:
        rewards = pa.array(added.column(name, writer, batch, lengths))
        column = pa.ListArray.from_arrays(offsets, rewards)
        batch = pa.RecordBatch.from_arrays([*batch.columns, column], [*batch.schema.names, _added(name)])
    return batch


def _added(name: str) -> str:
    return f"added score {name}"


def is_one_of(texts: Any, allowed: Collection[str]) -> Bools:
    """(m,) whether each text is one of a few; false for null."""
    encoded = pc.dictionary_encode(texts, null_encoding="encode")
    known = np.array([text in allowed for text in encoded.dictionary.to_pylist()], dtype=np.bool_)
    return known[floats(encoded.indices).astype(np.int64)]


def part_names(batch: Any) -> list[str]:
    """The names of the parts of rewards in a batch."""
    entries = batch.column("candidates").flatten().field("rewards").flatten()
    return sorted(pc.unique(entries.field("key")).to_pylist())


def spread(texts: Any) -> NDArray[np.uint64]:
    """(m,) numbers spread over 64 bits, equal for equal texts (of which 64 bytes count) and else practically never."""
    words = _words_of(texts)
    mixed = np.zeros(len(words), dtype=np.uint64)
    for column in words.T:
        mixed = (mixed ^ column) * _MIX
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _words_of(texts: Any) -> NDArray[np.uint64]:
    """(m, 8) the first 64 bytes of each text, zeros after its end."""
    if len(texts) and (floats(pc.binary_length(texts)) == 64).all():  # as digests are
        _, offsets, letters = texts.buffers()
        first = int(np.frombuffer(offsets, np.int32, 1, 4 * texts.offset)[0])
        return np.frombuffer(letters, np.uint8, 64 * len(texts), first).view(np.uint64).reshape(-1, 8)
    fixed = texts.to_numpy(zero_copy_only=False).astype("S64")
    return np.asarray(fixed.view(np.uint64).reshape(-1, 8), dtype=np.uint64)


def _part(rewards: Any, name: str) -> Floats:
    entries = rewards.flatten()
    chosen = _is(entries.field("key"), name)
    result = np.full(len(rewards), np.nan)
    result[np.repeat(np.arange(len(rewards)), _lengths(rewards))[chosen]] = floats(entries.field("value"))[chosen]
    return result


def _repeats(request: Ints, texts: Any) -> Floats:
    """(c,) 1 where an earlier candidate of the same request has the same text."""
    codes = floats(pc.dictionary_encode(texts).indices).astype(np.int64)
    _, first = np.unique(request * (len(texts) + 1) + codes, return_index=True)
    repeated = np.ones(len(texts))
    repeated[first] = 0.0
    return repeated


def _logged(batch: Any) -> NDArray[np.bool_]:
    """(c,) whether the candidate's text is in the log."""
    return bools(pc.fill_null(batch.column("content_logged"), True))[requests_of(batch)]


def _is(texts: Any, text: str) -> NDArray[np.bool_]:
    return bools(pc.fill_null(pc.equal(texts, pa.scalar(text, pa.string())), False))


def bools(array: Any) -> Bools:
    """Of an array without nulls."""
    if not len(array):
        return np.empty(0, dtype=np.bool_)
    bits = np.unpackbits(np.frombuffer(array.buffers()[1], np.uint8), bitorder="little")
    return bits[array.offset : array.offset + len(array)].view(np.bool_)


def floats(array: Any) -> Floats:
    """Numbers, null as NaN. Like `to_numpy`, which would import pandas where it is installed: 0.2 s."""
    if not len(array):
        return np.empty(0)
    end = array.offset + len(array)
    values = np.frombuffer(array.buffers()[1], array.type.to_pandas_dtype(), end)[array.offset :].astype(np.float64)
    if array.null_count:
        values[~bools(array.is_valid())] = np.nan
    return values


def _lengths(lists: Any) -> Ints:
    return np.nan_to_num(floats(lists.value_lengths())).astype(np.int64)


class Names(NamedTuple):
    """As `log.record.reward_model_names` has them."""

    loose: str
    """Ids joined by +."""
    exact: str
    """The same with revisions."""


@dataclass(frozen=True, slots=True)
class RewardModels:
    """Of m requests."""

    names: list[Names]
    which: NDArray[np.int64]
    """(m,) position in `names`."""

    def named(self, name: str) -> NDArray[np.bool_]:
        """(m,) whether they are called so, by either name."""
        return np.array([name in names for names in self.names], dtype=np.bool_)[self.which]

    def where(self, mask: NDArray[np.bool_]) -> RewardModels:
        """Of these requests only."""
        return RewardModels(self.names, self.which[mask])


def models_of(models: Any) -> RewardModels:
    """From the column `reward_models` of a batch."""
    if not len(models):
        return RewardModels([], np.empty(0, dtype=np.int64))
    if _all_alike(models):
        first = tuple(ModelRef(one["name"], one["id"] or "", one["revision"] or "") for one in models[0].as_py())
        return RewardModels([Names(*reward_model_names(first))], np.zeros(len(models), dtype=np.int64))
    flat = models.flatten()
    ids, revisions = pc.fill_null(flat.field("id"), ""), pc.fill_null(flat.field("revision"), "")
    exact = pc.if_else(pc.equal(revisions, ""), ids, pc.binary_join_element_wise(ids, revisions, "@"))
    lengths = pc.fill_null(models.value_lengths(), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    both = [pc.binary_join(pa.ListArray.from_arrays(offsets, names), "+") for names in (ids, exact)]
    encoded = pc.binary_join_element_wise(*both, "\0").dictionary_encode()
    names = [Names(*pair.split("\0", 1)) for pair in encoded.dictionary.to_pylist()]
    return RewardModels(names, encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64))


def _all_alike(models: Any) -> bool:
    """Whether each request has one reward model, the same one: as in most logs."""
    flat = models.flatten()
    return bool((floats(models.value_lengths()) == 1).all()) and all(
        pc.count_distinct(flat.field(name), mode="all").as_py() == 1 for name in ("name", "id", "revision")
    )

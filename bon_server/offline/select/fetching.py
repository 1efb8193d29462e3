"""Third stage, first half: the texts of what was picked, read again from the files that have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bon_server.core.errors import LogError
from bon_server.log.segments.where import Ordinals
from bon_server.offline.select import eligible
from bon_server.offline.select.eligible import lengths_of, rewards_of
from bon_server.offline.select.formats import FORMATS
from bon_server.offline.select.gathering import batches
from bon_server.offline.select.plan import File, SelectionPlan
from bon_server.offline.select.rows import Rows

_OF_REQUEST = (
    "request_id",
    "principal",
    "attempt",
    "kind",
    "n",
    "prompt_hash",
    "prompt_text",
    "prompt_messages",
)
_OF_CANDIDATE = ("text", "reward", "finish_reason", "completion_tokens", "policy_revision")
_DENSE = 0.5
"""Share of a file's rows above which it is read whole rather than filtered first."""

_MOST_BYTES = (1 << 31) - 1
"""What an Arrow array of strings can hold, whose offsets have 32 bits."""


def fetch(plan: SelectionPlan, picks: Rows, token_ids: bool, prompt_token_ids: bool) -> Any:
    """An Arrow table with a row for each pick, in their order.

    Columns: those of `_OF_REQUEST`, `policy_id`, `request_policy_revision`, those of `_OF_CANDIDATE`, `reward` (the one
    that was chosen by), and where asked for `token_ids` and `prompt_token_ids`; for formats that hold parts of rewards
    `rewards` and `reward_context`. Raises `LogError` when one cannot be read, or when they are too much.
    """
    pieces, numbers = [], []
    damage: list[str] = []
    for file, mine in _files(plan, picks):
        for batch in _wanted_batches(plan, file, picks["ordinal"][mine], token_ids, prompt_token_ids, damage):
            number, row = _matches(picks["ordinal"], mine, batch["ordinal"].to_numpy())
            pieces.append(_take(plan, file, batch, row, picks["index"][number], damage))
            numbers.append(number)
    found = np.concatenate([*numbers, np.empty(0, dtype=np.intp)])
    reason = f": {damage[0]}" if damage else ""
    if len(found) != len(picks) or len(np.unique(found)) != len(picks):
        raise LogError(f"{len(picks) - len(found)} chosen candidates cannot be read again{reason}")
    without = sum(piece["reward"].null_count for piece in pieces)
    if without:
        raise LogError(f"{without} chosen candidates have lost the reward they were chosen by{reason}")
    _check_sizes(pieces)
    table = pa.Table.from_batches(pieces).combine_chunks()
    return table.take(pa.array(np.argsort(found, kind="stable"))).combine_chunks()


def _check_sizes(pieces: Sequence[Any]) -> None:
    """Raises `LogError` for more text than a file of the training set can be made of."""
    for name in ("text", "prompt_text", "prompt_messages"):
        size_bytes = sum(piece[name].nbytes for piece in pieces)
        if size_bytes > _MOST_BYTES:
            lines = sum(piece.num_rows for piece in pieces)
            raise LogError(
                f"{lines} chosen candidates have {size_bytes >> 20} MiB in {name}, and a file is made of at most"
                f" {_MOST_BYTES >> 20}; choose fewer lines of a file with --shard-rows"
            )


def _files(plan: SelectionPlan, picks: Rows) -> Iterator[tuple[File, NDArray[np.intp]]]:
    """Files that may hold some of the picks, with the numbers of these, by ordinal."""
    order = np.lexsort([picks["ordinal"], picks["writer"]])
    writers, ordinals = picks["writer"][order], picks["ordinal"][order]
    for file in plan.files:
        first, last = np.searchsorted(writers, [file.writer, file.writer + 1])
        low, high = first + np.searchsorted(ordinals[first:last], [file.part.first_ordinal, file.part.last_ordinal + 1])
        if low < high:
            yield file, order[low:high]


def _wanted_batches(
    plan: SelectionPlan,
    file: File,
    ordinals: NDArray[np.int64],
    token_ids: bool,
    prompt_token_ids: bool,
    damage: list[str],
) -> Iterator[Any]:
    """ordinals: rising."""
    names = ["ordinal", *_OF_REQUEST, "policy.id", "policy.revision"]
    names += [f"candidates.{name}" for name in _OF_CANDIDATE]
    names += ["candidates.token_ids"] * token_ids + ["prompt_token_ids"] * prompt_token_ids
    names += ["candidates.rewards", "reward_context"] * FORMATS[plan.format].parts + eligible.reward_columns(plan)
    part = replace(file.part, after_ordinal=int(ordinals[0]) - 1, through_ordinal=int(ordinals[-1]))
    span = int(ordinals[-1] - ordinals[0]) + 1
    only = None if len(ordinals) > _DENSE * span else Ordinals(ordinals.tolist())
    yield from batches(plan, replace(file, part=part), names, damage, only)


def _matches(
    picked: NDArray[np.int64], mine: NDArray[np.intp], ordinals: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Numbers of picks, and the row of each.

    picked: ordinals of all picks; mine: the numbers of those of a file, by ordinal; ordinals: those of the rows.
    """
    sorted_picks = picked[mine]
    left = np.searchsorted(sorted_picks, ordinals, side="left")
    counts = np.searchsorted(sorted_picks, ordinals, side="right") - left
    row = np.repeat(np.arange(len(ordinals)), counts)
    within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    return mine[left[row] + within], row


def _take(plan: SelectionPlan, file: File, batch: Any, row: NDArray[np.intp], index: Any, damage: list[str]) -> Any:
    lengths = lengths_of(batch["candidates"])
    flat = pa.array((np.cumsum(lengths) - lengths)[row] + index)
    rows = pa.array(row)
    candidates = batch["candidates"].flatten()
    columns = {name: batch[name].take(rows) for name in _OF_REQUEST}
    columns["policy_id"] = batch["policy"].field("id").take(rows)
    columns["request_policy_revision"] = batch["policy"].field("revision").take(rows)
    columns |= {name: candidates.field(name).take(flat) for name in _OF_CANDIDATE}
    if plan.filters.reward is not None:
        rewards = rewards_of(plan, file, batch, lengths, damage)
        columns["reward"] = pa.array(rewards.values, from_pandas=True).take(flat)
    there = [field.name for field in candidates.type]
    columns |= {name: candidates.field(name).take(flat) for name in ("token_ids", "rewards") if name in there}
    there = batch.schema.names
    columns |= {name: batch[name].take(rows) for name in ("prompt_token_ids", "reward_context") if name in there}
    return pa.RecordBatch.from_pydict(columns)

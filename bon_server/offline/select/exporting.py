"""Third stage: the files of the training set, each a task: picks in log order, their texts, a piece of the sidecar.

On the way it counts how many tokens the chosen have, so that one knows what a trainer's `max_length` would cut. A
trainer cuts at the end: what it cuts from a winner is the answer, and its end-of-text first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from bon_server.models.tokenizer import load_tokenizer
from bon_server.offline.select.choosing import in_lines, picks_files
from bon_server.offline.select.eligible import lengths_of
from bon_server.offline.select.fetching import fetch
from bon_server.offline.select.formats import FORMATS
from bon_server.offline.select.plan import SelectionPlan
from bon_server.offline.select.rows import FORMS, LINE, PICK, Rows, empty, firsts, read_runs
from bon_server.offline.select.writing import chats, meta_table, write_data, write_piece

_one_at_a_time = Lock()
"""A tokenizer is not made for several threads."""


def lengths_in_tokens(tokenizer: str | None, table: Any) -> NDArray[np.int64]:
    """(p,) tokens of prompt and completion together, −1 where they are not known.

    tokenizer: folder; None: count the tokens in the log. table: what `fetch` returned, of prompts of one form.
    """
    if tokenizer is None:
        prompt = lengths_of(table["prompt_token_ids"].combine_chunks())
        completion = table["completion_tokens"].to_numpy()
        empty = pc.equal(pc.binary_length(pc.fill_null(table["text"], "")), 0).to_numpy(zero_copy_only=False)
        return np.where((prompt == 0) | ((completion == 0) & ~empty), -1, prompt + completion)
    with _one_at_a_time:
        return _by_tokenizer(_load(tokenizer), table)


@cache
def _load(folder: str) -> Any:
    return load_tokenizer(Path(folder))


def _by_tokenizer(tokenizer: Any, table: Any) -> NDArray[np.int64]:
    texts, prompts = table["text"].to_pylist(), table["prompt_text"].to_pylist()
    answers = [{"role": "assistant", "content": text} for text in texts]
    if table["prompt_text"].null_count == 0:
        whole = [f"{prompt}{text}" for prompt, text in zip(prompts, texts, strict=True)]
        special = True
    elif table["prompt_messages"].null_count == 0:
        messages = chats(table["prompt_messages"])
        whole = [
            tokenizer.apply_chat_template([*chat, answer], tokenize=False)
            for chat, answer in zip(messages, answers, strict=True)
        ]
        special = False  # the template has them already
    else:
        return np.full(len(texts), -1)
    return np.array([len(ids) for ids in tokenizer(whole, add_special_tokens=special)["input_ids"]], dtype=np.int64)


SUFFIXES = {"none": "", "gzip": ".gz", "zstd": ".zst"}


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of the training set."""

    number: int
    form: int | None
    """Of its prompts; None: nothing was chosen."""
    lines: int
    first_range: int = 0
    last_range: int = -1
    skip: int = 0
    """Lines of the first range that are in files before."""


@dataclass(frozen=True, slots=True)
class Export:
    """What the tasks of this stage have in common."""

    plan: SelectionPlan
    shards: tuple[Shard, ...]

    def name(self, shard: Shard) -> str:
        """Of its file."""
        data = FORMATS[self.plan.format]
        packed = SUFFIXES[self.plan.written.compression] if data.lines is not None else ""
        return f"part-{shard.number:05d}{data.suffix}{packed}"


def divide_lines(plan: SelectionPlan, lines: Iterable[list[list[int]]]) -> tuple[Shard, ...]:
    """The files: of each form, `shard_rows` lines after `shard_rows` lines. lines: [range, lines] of several tasks."""
    by_range = np.zeros(plan.all_ranges, dtype=np.int64)
    for counted in lines:
        for number, count in counted:
            by_range[number] += count
    shards: list[Shard] = []
    for form in range(len(FORMS)):
        first_of_form = form * plan.ranges[-1]
        ends = np.cumsum(by_range[first_of_form : first_of_form + plan.ranges[-1]])
        for first in range(0, int(ends[-1]), plan.written.shard_rows):
            count = min(plan.written.shard_rows, int(ends[-1]) - first)
            low, high = (int(one) for one in np.searchsorted(ends, [first, first + count - 1], side="right"))
            skip = first - (int(ends[low - 1]) if low else 0)
            shards.append(Shard(len(shards), form, count, first_of_form + low, first_of_form + high, skip))
    return tuple(shards) or (Shard(0, None, 0),)


def write_shard(export: Export, number: int) -> dict[str, Any]:
    """Writes one file and its piece of the sidecar; returns what is in it."""
    plan, shard = export.plan, export.shards[number]
    picks = _picks(export, shard)
    data, written = FORMATS[plan.format], plan.written
    from_log = written.max_length is not None and written.tokenizer is None
    table = fetch(plan, picks, data.tokens, data.tokens or from_log) if len(picks) else None
    name = export.name(shard)
    rows, sha256 = write_data(plan, plan.out / name, shard.form, picks, table)
    meta = None if table is None else meta_table(plan, name, picks, table)
    write_piece(plan.work, number, meta)
    return {
        "file": name,
        "rows": rows,
        "sha256": sha256,
        "prompts": None if shard.form is None else FORMS[shard.form],
        "selected": len(picks),
        "policies": _policies(meta),
        "lengths": None if table is None else _audit(plan, picks, table),
    }


def _picks(export: Export, shard: Shard) -> Rows:
    if shard.form is None:
        return empty(PICK)
    plan = export.plan
    picks = read_runs(picks_files(plan), PICK, plan.all_ranges, shard.first_range, shard.last_range)
    picks = in_lines(picks)
    line = np.cumsum(firsts(picks, *LINE)) - 1 - shard.skip
    return picks[(line >= 0) & (line < shard.lines)]


def _policies(meta: Any) -> list[list[Any]]:
    """[id, revision, chosen candidates]"""
    if meta is None:
        return []
    pairs = zip(meta["policy_id"].to_pylist(), meta["policy_revision"].to_pylist(), strict=True)
    return [[*policy, count] for policy, count in Counter(pairs).items() if policy[0] is not None]


def _audit(plan: SelectionPlan, picks: Rows, table: Any) -> dict[str, int] | None:
    """Of the candidates of a file: how many are too long, how long the longest is, of how many it is not known."""
    limit = plan.written.max_length
    if limit is None:
        return None
    tokens = lengths_in_tokens(plan.written.tokenizer, table)
    known = tokens[tokens >= 0]
    return {
        "candidates": len(tokens),
        "cut": int((known > limit).sum()),
        "longest": int(known.max(initial=0)),
        "unknown": int(len(tokens) - len(known)),
    }


def merged_audit(plan: SelectionPlan, lengths: Iterable[dict[str, int] | None]) -> dict[str, Any] | None:
    """For the manifest; None when none was asked for."""
    if plan.written.max_length is None:
        return None
    found = [one for one in lengths if one is not None]
    return {
        "max_length": plan.written.max_length,
        "counted_with": plan.written.tokenizer or "log",
        "candidates": sum(one["candidates"] for one in found),
        "cut": sum(one["cut"] for one in found),
        "longest": max((one["longest"] for one in found), default=0),
        "unknown": sum(one["unknown"] for one in found),
    }

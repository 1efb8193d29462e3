"""The rows as the trainer takes them, and the count of those that it does not get.

A row that is too long is left out rather than cut: what is cut from an answer is its end, and a model that is trained
on answers without an end learns not to stop.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bon_server.core.errors import TrainingError
from bon_server.core.types import FinishReason
from bon_server.offline.select.formats import IGNORED
from bon_server.offline.train.encoding import Encoder, PromptCompletion
from bon_server.offline.train.sources import Row, TrainingSource

SFT_COLUMNS = ("input_ids", "labels")
DPO_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
_CHUNK_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Example:
    """A row that fits."""

    columns: tuple[NDArray[np.int32], ...]
    """Token ids of each of `SFT_COLUMNS` or `DPO_COLUMNS`."""
    prompt_key: int
    """64 bits of the prompt's tokens: the same for rows of one prompt."""


@dataclass(slots=True)
class Audit:
    """What became of the rows."""

    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """By reason: `too_long`, `nothing_to_learn` (no token has a label, or both answers of a pair are the same)."""
    longest: int = 0
    """Tokens of the longest row, whether left out or not, as far as counted."""
    truncated: int = 0
    """Completions that ended at `max_tokens`; they get no end."""
    ended_otherwise: int = 0
    """Sampled completions that stopped at something else than the policy's own end: a stop text, or tokens unknown."""


def examples_of(source: TrainingSource, encoder: Encoder, max_length: int, audit: Audit) -> Iterator[Example]:
    """Rows that fit, in the order of the data; the others are counted in `audit`.

    Raises TrainingError: a row that is not what its format says, naming file and line.
    """
    for file, line, row in source.rows():
        audit.rows += 1
        try:
            example = _encode(source, encoder, audit, file, line, row)
        except TrainingError as error:
            raise TrainingError(f"{file}, line {line + 1}: {error}") from error
        tokens = 0 if example is None else _tokens(example)
        audit.longest = max(audit.longest, tokens)
        if example is None or tokens > max_length:
            audit.left_out["too_long"] += 1
        elif not _teaches(example):
            audit.left_out["nothing_to_learn"] += 1
        else:
            yield example


def _encode(source: TrainingSource, encoder: Encoder, audit: Audit, file: Path, line: int, row: Row) -> Example | None:
    """None: the prompt alone is too long."""
    if source.format == "trl-dpo":
        return _pair(source, encoder, audit, file, line, row)
    ending = source.ending(file, line)
    audit.truncated += ending == FinishReason.LENGTH
    if source.format == "trl-tokens":
        return _sampled(encoder, audit, ending, row)
    prompt, completion = row.get("prompt"), row.get("completion")
    if source.format == "messages":
        if not isinstance(row["messages"], list) or len(row["messages"]) < 2:
            raise TrainingError("its messages are no list of at least two")
        prompt, completion = row["messages"][:-1], row["messages"][-1:]
    if not isinstance(prompt, str | list) or not isinstance(completion, str | list):
        raise TrainingError("its prompt or completion is neither a text nor a list of messages")
    said = encoder.said(prompt, completion, ending)
    return None if said is None else _example(said.prompt_ids, (said.input_ids, said.labels))


def _sampled(encoder: Encoder, audit: Audit, ending: str | None, row: Row) -> Example:
    ids, labels = row["input_ids"], row["labels"]
    for name, values, extra in (("input_ids", ids, ()), ("labels", labels, (IGNORED,))):
        if not isinstance(values, list) or not all(isinstance(one, int) for one in values):
            raise TrainingError(f"its {name} are no list of whole numbers")
        wrong = [one for one in values if not 0 <= one < encoder.vocabulary_size and one not in extra]
        if wrong:
            allowed = f"the policy's vocabulary has 0 to {encoder.vocabulary_size - 1}"
            raise TrainingError(f"its {name} hold the token {wrong[0]}; {allowed}")
    if len(ids) != len(labels):
        raise TrainingError(f"it has {len(ids)} input_ids and {len(labels)} labels")
    if ids and ending != FinishReason.LENGTH and ids[-1] not in encoder.stop_ids:
        audit.ended_otherwise += 1
    first = next((place for place, label in enumerate(labels) if label != IGNORED), len(labels))
    return _example(ids[:first], (ids, labels))


def _pair(source: TrainingSource, encoder: Encoder, audit: Audit, file: Path, line: int, row: Row) -> Example | None:
    both: list[PromptCompletion] = []
    for role in ("chosen", "rejected"):
        ending = source.ending(file, line, role)
        audit.truncated += ending == FinishReason.LENGTH
        said = encoder.said(row["prompt"], row[role], ending)
        if said is None:
            return None
        both.append(said)
    chosen, rejected = both
    return _example(chosen.prompt_ids, (chosen.prompt_ids, chosen.completion_ids, rejected.completion_ids))


def _example(prompt_ids: list[int], columns: tuple[list[int], ...]) -> Example:
    digest = hashlib.blake2b(",".join(map(str, prompt_ids)).encode(), digest_size=8).digest()
    return Example(tuple(np.asarray(one, np.int32) for one in columns), int.from_bytes(digest, "big"))


def _tokens(example: Example) -> int:
    """Of the longer answer, with its prompt."""
    if len(example.columns) == len(SFT_COLUMNS):
        return len(example.columns[0])
    prompt, chosen, rejected = example.columns
    return len(prompt) + max(len(chosen), len(rejected))


def _teaches(example: Example) -> bool:
    if len(example.columns) == len(SFT_COLUMNS):
        return bool((example.columns[1][1:] != IGNORED).any())  # nothing predicts the first token
    _, chosen, rejected = example.columns
    return not np.array_equal(chosen, rejected)


def split(examples: Iterator[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(to train on, held out): `share` of the prompts, drawn by the seed, are held out with all of their rows."""
    every = list(examples)
    if not share:
        return every, []
    keys = sorted({one.prompt_key for one in every}, key=lambda key: _draw(key, seed))
    out = set(keys[: max(1, round(share * len(keys)))]) if len(keys) > 1 else set()
    return [one for one in every if one.prompt_key not in out], [one for one in every if one.prompt_key in out]


def _draw(key: int, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest()


def as_dataset(examples: list[Example], names: tuple[str, ...]) -> Any:
    """A `datasets.Dataset` in memory: four bytes a token and column."""
    import pyarrow as pa
    from datasets import Dataset

    schema = pa.schema([(name, pa.list_(pa.int32())) for name in names])
    chunks = [
        pa.RecordBatch.from_arrays(
            [
                pa.array([one.columns[place] for one in examples[first : first + _CHUNK_ROWS]], pa.list_(pa.int32()))
                for place in range(len(names))
            ],
            schema=schema,
        )
        for first in range(0, len(examples), _CHUNK_ROWS)
    ]
    return Dataset(pa.Table.from_batches(chunks, schema))


def lengths_of(examples: list[Example]) -> list[int]:
    """(rows,) tokens of each."""
    return [_tokens(one) for one in examples]

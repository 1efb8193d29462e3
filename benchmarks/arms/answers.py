"""Answers of one policy to the held-out questions, read from the log, as arrays by question and sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.arms.setting import Gold
from bon_server.core.errors import LogError
from bon_server.core.types import Candidate, FinishReason, Outcome
from bon_server.log.read.reader import LogReader
from bon_server.log.record import Record
from bon_server.loop.rounds.evaluation import SampledText, first_text
from bon_server.models.reward.pairs import prompt_text

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """P questions in the order of their file, n answers each."""

    rewards: dict[str, Floats]
    """(P, n) by name of the reward model."""
    gold: Floats
    """(P, n)."""
    tokens: Floats
    """(P, n) of the completion."""
    truncated: Floats
    """(P, n) 1 where the answer was cut at `max_tokens`."""
    first: tuple[SampledText, ...]
    """(P,) the first answer of each question."""
    distinct: float
    """Mean over questions of the share of answers that no earlier answer equals."""


def read_answers(log: Path, temperature: float, gold: Gold, rewards: tuple[str, ...]) -> Answers:
    """All answers that were sampled at this temperature.

    rewards: names of the reward models that scored. Raises LogError: an answer is missing, has no reward, or is logged
    without its tokens.
    """
    found: dict[int, Record] = {}
    with LogReader(log) as reader:
        for record in reader.records():
            if record.sampling is not None and record.sampling.temperature == temperature:
                found[int(record.tags["question"])] = record  # of several attempts the last
    records = [found[index] for index in sorted(found)]
    if not records or len(records) != max(found) + 1:
        raise LogError(f"{log}: {len(records)} questions have answers at temperature {temperature}, not all")
    for record in records:
        if record.outcome is not Outcome.OK:
            raise LogError(f"{log}: request {record.request_id} ended as {record.outcome}")
    candidates = [[_scored(one, log) for one in record.candidates] for record in records]
    return Answers(
        {name: _table(candidates, lambda one, name=name: _reward(one, name)) for name in rewards},  # type: ignore[misc]
        np.array([[_worth(record, one, gold) for one in record.candidates] for record in records]),
        _table(candidates, lambda one: float(one.completion_tokens)),
        _table(candidates, lambda one: float(one.finish_reason is FinishReason.LENGTH)),
        tuple(_first(record, log) for record in records),
        float(np.mean([len({one.text for one in row}) / len(row) for row in candidates])),
    )


def _scored(one: Candidate, log: Path) -> Candidate:
    if one.reward is None:
        raise LogError(f"{log}: an answer has no reward ({one.status}), so means would not be comparable")
    return one


def _table(candidates: list[list[Candidate]], value: Callable[[Candidate], float]) -> Floats:
    return np.array([[value(one) for one in row] for row in candidates], dtype=np.float64)


def _reward(one: Candidate, name: str) -> float:
    """A single reward model has no parts."""
    assert one.reward is not None
    return one.rewards.get(name, one.reward)


def _worth(record: Record, one: Candidate, gold: Gold) -> float:
    return float(gold(prompt=prompt_text(record.prompt), completion=one.text, context=record.reward_context))


def _first(record: Record, log: Path) -> SampledText:
    text = first_text(record)
    if text is None:
        raise LogError(f"{log}: request {record.request_id} has no token ids, so its KL would not be known")
    return text

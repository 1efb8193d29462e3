"""What every import format reads its lines into, and the checks they share. Reasons name keys, never content."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bon_server.core.types import Candidate, CandidateStatus, FinishReason, Message, Prompt

Fields = dict[str, Any]
"""A line: a JSON object, or a row of a Parquet file."""
ROLES = ("system", "user", "assistant")


class BadImportLine(ValueError):
    """Why a line cannot be imported, without its content."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How lines are to be understood."""

    raw: bool = False
    """A plain-string prompt is a text to be continued, not one user message of a chat."""
    weights: Mapping[str, float] | None = None
    """Columns whose weighted sum is the reward; None: what the format takes for it."""
    typed: bool = False
    """The file tells integers from floating-point numbers, as Parquet does and JSON does not."""


@dataclass(frozen=True, slots=True)
class ImportLine:
    """One line: one candidate, or all of a prompt."""

    prompt: Prompt
    candidates: tuple[Candidate, ...]
    """In the order of the line, indexed from 0."""
    reward_models: tuple[str, ...] = ()
    """Who scored, where the line says so."""
    reward_context: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    id: str | None = None
    """The request id that the line asks for."""
    ignored: frozenset[str] = frozenset()
    """Keys that are not imported."""


def required(fields: Fields, *names: str) -> None:
    """Raises `BadImportLine` unless all of these keys are there."""
    missing = sorted(set(names) - fields.keys())
    if missing:
        raise BadImportLine(f"{', '.join(missing)}: missing")


def prompt_of(name: str, value: object, raw: bool) -> Prompt:
    """A string or a list of messages as a prompt."""
    if isinstance(value, str):
        if not value:
            raise BadImportLine(f"{name}: empty")
        return Prompt(text=value) if raw else Prompt(messages=(Message("user", value),))
    return Prompt(messages=messages_of(name, value))


def messages_of(name: str, value: object) -> tuple[Message, ...]:
    """A list of at least one message."""
    if not isinstance(value, list):
        raise BadImportLine(f"{name}: must be a string or a list of messages")
    if not value:
        raise BadImportLine(f"{name}: empty")
    return tuple(_message(f"{name}[{position}]", message) for position, message in enumerate(value))


def _message(name: str, value: object) -> Message:
    match value:
        case {"role": str(role), "content": str(content), **rest}:
            if role not in ROLES:
                raise BadImportLine(f"{name}.role: must be one of {', '.join(ROLES)}")
            if any(more is not None for more in rest.values()):  # Parquet fills in what other messages have
                raise BadImportLine(f"{name}: may have role and content only")
            return Message(role, content)
    raise BadImportLine(f"{name}: must be an object with the strings role and content")


def text_of(name: str, value: object) -> str:
    """A string, which may be empty."""
    if not isinstance(value, str):
        raise BadImportLine(f"{name}: must be a string")
    return value


def number_of(name: str, value: object) -> float | None:
    """A number, which need not be finite, or null."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadImportLine(f"{name}: must be a number or null")
    try:
        return float(value)
    except OverflowError:
        raise BadImportLine(f"{name}: too large") from None


def finish_reason_of(name: str, value: object) -> FinishReason | None:
    """One of our finish reasons, or null."""
    if value is None:
        return None
    if not isinstance(value, str) or value not in set(FinishReason):
        raise BadImportLine(f"{name}: must be null or one of {', '.join(FinishReason)}")
    return FinishReason(value)


def string_map_of(name: str, value: object) -> dict[str, str]:
    """An object of strings; null: an empty one."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadImportLine(f"{name}: must be an object of strings")
    return value


def candidate_of(
    index: int,
    text: str,
    reward: float | None,
    parts: Mapping[str, float | None],
    finish_reason: FinishReason | None = None,
) -> Candidate:
    """A candidate whose status says what its reward was; numbers that are not finite stay outside."""
    return Candidate(
        index=index,
        status=_status(reward),
        text=text,
        finish_reason=finish_reason,
        reward=_finite(reward),
        rewards={name: number for name, part in parts.items() if (number := _finite(part)) is not None},
    )


def reward_of(columns: Mapping[str, float | None], reading: Reading, default: Sequence[str]) -> float | None:
    """The weighted sum of the columns asked for, or of the default ones. What is null was not applied and is left out.

    None when all are null, NaN when one is not finite.
    """
    weights = reading.weights or dict.fromkeys(default, 1.0)
    missing = sorted(weights.keys() - columns.keys())
    if missing:
        raise BadImportLine(f"{', '.join(missing)}: missing, or not a number")
    applied = [weight * part for name, weight in weights.items() if (part := columns[name]) is not None]
    if not applied:
        return None
    return sum(applied) if all(map(math.isfinite, applied)) else math.nan


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _status(reward: float | None) -> CandidateStatus:
    if reward is None:
        return CandidateStatus.UNSCORED
    return CandidateStatus.SCORED if math.isfinite(reward) else CandidateStatus.NON_FINITE

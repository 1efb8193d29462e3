"""The import format `grouped`: one JSON object a line, one prompt with its scored responses.

    {"prompt": str | [{"role", "content"}, …], "responses": [str, …], "rewards": [number | null, …],
     "scores"?: {name: [number | null, …]}, "finish_reasons"?: [str | null, …],
     "reward_context"?: {str: str}, "tags"?: {str: str}, "id"?: str}

The lists run parallel to `responses`. A null reward is a candidate without one, `unscored`; NaN or infinity makes it
`non_finite`. `scores` become entries of a candidate's `rewards`, which holds finite numbers only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bon_server.log.record import Record, prompt_hash
from bon_server.types import Candidate, CandidateStatus, FinishReason, Kind, Message, ModelRef, Outcome, Prompt

PRINCIPAL = "import"
"""Imported ids are apart from those of callers: an imported line never answers a request."""
MAX_ID_CHARACTERS = 256
_REQUIRED = {"prompt", "responses", "rewards"}
_OPTIONAL = {"scores", "finish_reasons", "reward_context", "tags", "id"}
_ROLES = ("system", "user", "assistant")


class BadLine(ValueError):
    """Why a line cannot be imported, without its content."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is a JSON object with the required keys."""

    fields: dict[str, Any]
    digest: str
    """SHA-256 of its bytes."""
    unknown_keys: frozenset[str]
    """Keys that the format does not have; they are not imported."""

    @property
    def id(self) -> str | None:
        """The request id the line names."""
        return self.fields.get("id")


def parse(line: bytes) -> Line:
    """Reads one line. Raises `BadLine`."""
    try:
        fields = json.loads(line.decode(), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as error:
        raise BadLine(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise BadLine(f"not JSON at character {error.pos}: {error.msg}") from None
    except BadLine:
        raise
    except (ValueError, RecursionError) as error:
        raise BadLine(f"not JSON that can be read ({type(error).__name__})") from None
    if not isinstance(fields, dict):
        raise BadLine("not a JSON object")
    missing = sorted(_REQUIRED - fields.keys())
    if missing:
        raise BadLine(f"{', '.join(missing)}: missing")
    identifier = fields.get("id")
    if identifier is not None and not (isinstance(identifier, str) and 1 <= len(identifier) <= MAX_ID_CHARACTERS):
        raise BadLine(f"id: must be a string of 1 to {MAX_ID_CHARACTERS} characters")
    return Line(fields, hashlib.sha256(line).hexdigest(), frozenset(fields.keys() - _REQUIRED - _OPTIONAL))


def to_record(line: Line, request_id: str, reward_model: str, raw: bool, created_at: datetime) -> Record:
    """The record of a line. Raises `BadLine`.

    raw: a plain-string prompt is a text to be continued, not one user message of a chat. Nothing was chosen when the
    line was made, as far as it says, so nothing is selected in the record either.
    """
    prompt = _prompt(line.fields["prompt"], raw)
    context, tags = (_string_map(line.fields, name) for name in ("reward_context", "tags"))
    candidates = _candidates(line.fields)
    try:
        identity = prompt_hash(prompt, context)
    except ValueError as error:
        raise BadLine(f"prompt: {error}") from None
    return Record(
        request_id=request_id,
        request_digest=line.digest,
        principal=PRINCIPAL,
        kind=Kind.IMPORT,
        outcome=Outcome.OK if all(c.status is CandidateStatus.SCORED for c in candidates) else Outcome.PARTIAL,
        created_at=created_at,
        prompt_hash=identity,
        prompt_text=prompt.text,
        prompt_messages=prompt.messages,
        n=len(candidates),
        candidates=candidates,
        reward_models=(ModelRef(name="reward", id=reward_model, revision=""),),
        reward_context=context,
        tags=tags,
    )


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise BadLine("a key is there twice")
    return fields


def _prompt(value: object, raw: bool) -> Prompt:
    if isinstance(value, str):
        if not value:
            raise BadLine("prompt: empty")
        return Prompt(text=value) if raw else Prompt(messages=(Message("user", value),))
    if not isinstance(value, list):
        raise BadLine("prompt: must be a string or a list of messages")
    if not value:
        raise BadLine("prompt: empty")
    return Prompt(messages=tuple(_message(position, message) for position, message in enumerate(value)))


def _message(position: int, value: object) -> Message:
    match value:
        case {"role": str(role), "content": str(content), **rest}:
            if role not in _ROLES:
                raise BadLine(f"prompt[{position}].role: must be one of {', '.join(_ROLES)}")
            if rest:
                raise BadLine(f"prompt[{position}]: may have role and content only")
            return Message(role, content)
    raise BadLine(f"prompt[{position}]: must be an object with the strings role and content")


def _candidates(fields: dict[str, Any]) -> tuple[Candidate, ...]:
    responses = _list(fields, "responses", None)
    if not responses:
        raise BadLine("responses: empty")
    n = len(responses)
    rewards = _numbers("rewards", _list(fields, "rewards", n))
    finish_reasons = _list(fields, "finish_reasons", n) if fields.get("finish_reasons") is not None else [None] * n
    scores = _scores(fields.get("scores"), n)
    return tuple(
        Candidate(
            index=index,
            status=_status(rewards[index]),
            text=_text(index, responses[index]),
            finish_reason=_finish_reason(index, finish_reasons[index]),
            reward=_finite(rewards[index]),
            rewards={name: number for name, column in scores.items() if (number := _finite(column[index])) is not None},
        )
        for index in range(n)
    )


def _scores(value: object, n: int) -> dict[str, list[float | None]]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadLine("scores: must be an object of lists")
    return {name: _numbers(f"scores.{name}", _list(value, name, n, "scores.")) for name in value}


def _list(fields: dict[str, Any], name: str, n: int | None, where: str = "") -> list[Any]:
    value = fields[name]
    if not isinstance(value, list):
        raise BadLine(f"{where}{name}: must be a list")
    if n is not None and len(value) != n:
        raise BadLine(f"{where}{name}: {len(value)} given for {n} responses")
    return value


def _numbers(name: str, values: list[Any]) -> list[float | None]:
    return [_number(f"{name}[{index}]", value) for index, value in enumerate(values)]


def _number(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadLine(f"{name}: must be a number or null")
    try:
        return float(value)
    except OverflowError:
        raise BadLine(f"{name}: too large") from None


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _status(reward: float | None) -> CandidateStatus:
    if reward is None:
        return CandidateStatus.UNSCORED
    return CandidateStatus.SCORED if math.isfinite(reward) else CandidateStatus.NON_FINITE


def _text(index: int, value: object) -> str:
    if not isinstance(value, str):
        raise BadLine(f"responses[{index}]: must be a string")
    return value


def _finish_reason(index: int, value: object) -> FinishReason | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in set(FinishReason):
        raise BadLine(f"finish_reasons[{index}]: must be null or one of {', '.join(FinishReason)}")
    return FinishReason(value)


def _string_map(fields: dict[str, Any], name: str) -> dict[str, str]:
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadLine(f"{name}: must be an object of strings")
    return value

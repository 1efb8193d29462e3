"""The import format `grouped`: one line, one prompt with its scored responses.

    {"prompt": str | [{"role", "content"}, …], "responses": [str, …], "rewards": [number | null, …],
     "scores"?: {name: [number | null, …]}, "finish_reasons"?: [str | null, …],
     "reward_context"?: {str: str}, "tags"?: {str: str}, "id"?: str}

The lists run parallel to `responses`. A null reward is a candidate without one, `unscored`; NaN or infinity makes it
`non_finite`. `scores` become entries of a candidate's `rewards`, which holds finite numbers only.
"""

from __future__ import annotations

from typing import Any

from bon_server.offline.imports.line import (
    BadLine,
    Fields,
    Line,
    Reading,
    candidate_of,
    finish_reason_of,
    number_of,
    prompt_of,
    required,
    string_map_of,
    text_of,
)
from bon_server.types import Candidate

MAX_ID_CHARACTERS = 256
_REQUIRED = {"prompt", "responses", "rewards"}
_OPTIONAL = {"scores", "finish_reasons", "reward_context", "tags", "id"}


def read(fields: Fields, reading: Reading) -> Line:
    """The line of these fields. Raises `BadLine`."""
    required(fields, *_REQUIRED)
    return Line(
        prompt=prompt_of("prompt", fields["prompt"], reading.raw),
        candidates=_candidates(fields),
        reward_context=string_map_of("reward_context", fields.get("reward_context")),
        tags=string_map_of("tags", fields.get("tags")),
        id=_id(fields.get("id")),
        ignored=frozenset(fields.keys() - _REQUIRED - _OPTIONAL),
    )


def _id(value: object) -> str | None:
    if value is not None and not (isinstance(value, str) and 1 <= len(value) <= MAX_ID_CHARACTERS):
        raise BadLine(f"id: must be a string of 1 to {MAX_ID_CHARACTERS} characters")
    return value


def _candidates(fields: Fields) -> tuple[Candidate, ...]:
    responses = _list(fields, "responses", None)
    if not responses:
        raise BadLine("responses: empty")
    n = len(responses)
    rewards = _numbers("rewards", _list(fields, "rewards", n))
    finish_reasons = _list(fields, "finish_reasons", n) if fields.get("finish_reasons") is not None else [None] * n
    scores = _scores(fields.get("scores"), n)
    return tuple(
        candidate_of(
            index,
            text_of(f"responses[{index}]", responses[index]),
            rewards[index],
            {name: column[index] for name, column in scores.items()},
            finish_reason_of(f"finish_reasons[{index}]", finish_reasons[index]),
        )
        for index in range(n)
    )


def _scores(value: object, n: int) -> dict[str, list[float | None]]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadLine("scores: must be an object of lists")
    return {name: _numbers(f"scores.{name}", _list(value, name, n, "scores.")) for name in value}


def _list(fields: Fields, name: str, n: int | None, where: str = "") -> list[Any]:
    value = fields[name]
    if not isinstance(value, list):
        raise BadLine(f"{where}{name}: must be a list")
    if n is not None and len(value) != n:
        raise BadLine(f"{where}{name}: {len(value)} given for {n} responses")
    return value


def _numbers(name: str, values: list[Any]) -> list[float | None]:
    return [number_of(f"{name}[{index}]", value) for index, value in enumerate(values)]

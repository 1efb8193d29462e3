"""The import format `open-instruct`: the scores file of its rejection sampling, one line a candidate.

    {"messages": [{"role", "content"}, …], "model_completion"?: str, "reference_completion"?: str,
     "score"?: {reward model: number} | number}

The last message is the completion. Several reward models give a sum and an entry of `rewards` each. Lines without
`score` are those of its generation step; their candidates are `unscored`.
"""

from __future__ import annotations

from bon_server.offline.imports.line import (
    BadLine,
    Fields,
    Line,
    Reading,
    candidate_of,
    finish_reason_of,
    messages_of,
    number_of,
    required,
    reward_of,
    text_of,
)
from bon_server.types import Prompt

_KNOWN = {"messages", "model_completion", "reference_completion", "score", "finish_reason"}


def read(fields: Fields, reading: Reading) -> Line:
    """The line of these fields. Raises `BadLine`."""
    required(fields, "messages")
    *before, last = messages_of("messages", fields["messages"])
    if last.role != "assistant":
        raise BadLine(f"messages[{len(before)}].role: the last message must be by the assistant")
    if not before:
        raise BadLine("messages: nothing before the completion")
    if fields.get("model_completion") not in (None, last.content):
        raise BadLine("model_completion: is not the last message, so it is unknown which of them was scored")
    scores = _scores(fields.get("score"))
    candidate = candidate_of(
        0,
        last.content,
        reward_of(scores, reading, list(scores)),
        scores if len(scores) > 1 or reading.weights else {},
        finish_reason_of("finish_reason", fields.get("finish_reason")),
    )
    return Line(
        prompt=Prompt(messages=tuple(before)),
        candidates=(candidate,),
        reward_models=tuple(sorted(filter(None, reading.weights or scores))),
        reward_context=_context(fields.get("reference_completion")),
        ignored=frozenset(fields.keys() - _KNOWN),
    )


def _scores(value: object) -> dict[str, float | None]:
    """By reward model; the one without a name is called by the empty string."""
    if isinstance(value, dict):
        return {name: number_of(f"score.{name}", score) for name, score in value.items()}
    return {"": number_of("score", value)}


def _context(reference: object) -> dict[str, str]:
    return {} if reference is None else {"reference_completion": text_of("reference_completion", reference)}

"""The import format `openrlhf`: what OpenRLHF's `batch_inference` writes, one line a candidate.

    {"input": str, "output": str, "reward"?: number}

Lines without `reward` are those of its generation step; their candidates are `unscored`.
"""

from __future__ import annotations

from bon_server.offline.imports.line import (
    Fields,
    Line,
    Reading,
    candidate_of,
    finish_reason_of,
    number_of,
    prompt_of,
    required,
    reward_of,
    text_of,
)

_KNOWN = {"input", "output", "reward", "finish_reason"}


def read(fields: Fields, reading: Reading) -> Line:
    """The line of these fields. Raises `BadLine`."""
    required(fields, "input", "output")
    chosen = [name for name in reading.weights or () if name in fields]
    columns = {name: number_of(name, fields[name]) for name in chosen}
    columns.setdefault("reward", number_of("reward", fields.get("reward")))
    candidate = candidate_of(
        0,
        text_of("output", fields["output"]),
        reward_of(columns, reading, ["reward"]),
        columns if reading.weights else {},
        finish_reason_of("finish_reason", fields.get("finish_reason")),
    )
    prompt = prompt_of("input", fields["input"], reading.raw)
    return Line(prompt, (candidate,), ignored=frozenset(fields.keys() - _KNOWN - columns.keys()))

"""The import format `verl`: its dumps of rollouts and validation generations, one line a candidate.

    {"input": str, "output": str, "score": number, "step"?: int, "gts"?: any, more of the reward function…}

`rollout_data_dir` and `validation_data_dir` hold one file a step. Numbers and truth values of the reward function
become entries of `rewards`; `gts`, the ground truth, goes to the reward context.
"""

from __future__ import annotations

import json

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

_KNOWN = {"input", "output", "step", "gts", "finish_reason"}


def read(fields: Fields, reading: Reading) -> Line:
    """The line of these fields. Raises `BadLine`."""
    required(fields, "input", "output", "score")
    columns = {"score": number_of("score", fields["score"])}
    for name, value in fields.items():
        if name not in _KNOWN and (isinstance(value, int | float) or name in (reading.weights or ())):
            columns[name] = number_of(name, float(value) if isinstance(value, bool) else value)
    parts = {name: part for name, part in columns.items() if reading.weights or name != "score"}
    candidate = candidate_of(
        0,
        text_of("output", fields["output"]),
        reward_of(columns, reading, ["score"]),
        parts,
        finish_reason_of("finish_reason", fields.get("finish_reason")),
    )
    return Line(
        prompt=prompt_of("input", fields["input"], reading.raw),
        candidates=(candidate,),
        reward_context={} if fields.get("gts") is None else {"ground_truth": _text(fields["gts"])},
        tags={} if fields.get("step") is None else {"step": json.dumps(fields["step"])},
        ignored=frozenset(fields.keys() - _KNOWN - columns.keys()),
    )


def _text(ground_truth: object) -> str:
    if isinstance(ground_truth, str):
        return ground_truth
    return json.dumps(ground_truth, ensure_ascii=False, sort_keys=True)

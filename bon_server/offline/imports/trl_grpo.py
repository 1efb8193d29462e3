"""The import format `trl-grpo`: TRL's completion log (`log_completions=True`), one row a candidate.

    step, prompt, completion, a floating-point column per reward function, columns of `log_extra`, advantage

Prompt and completion are strings or lists of messages. The reward is the sum of the reward columns, or the column
`reward` where there is one (older TRL); null in a column means that its function does not apply. The file does not say
which columns are rewards nor how they are weighted: floating-point ones are taken, with weight 1, unless told.
"""

from __future__ import annotations

import json

from bon_server.offline.imports.line import (
    BadLine,
    Fields,
    Line,
    Reading,
    candidate_of,
    finish_reason_of,
    messages_of,
    number_of,
    prompt_of,
    required,
    reward_of,
    text_of,
)

_KNOWN = {"step", "prompt", "completion", "finish_reason"}
_NO_REWARD = _KNOWN | {"advantage"}


def read(fields: Fields, reading: Reading) -> Line:
    """The line of these fields. Raises `BadLine`."""
    required(fields, "prompt", "completion")
    columns = {
        name: number_of(name, value)
        for name, value in fields.items()
        if name not in _NO_REWARD and _is_reward(name, value, reading)
    }
    default = ["reward"] if "reward" in columns else list(columns)
    candidate = candidate_of(
        0,
        _completion(fields["completion"]),
        reward_of(columns, reading, default),
        {name: part for name, part in columns.items() if name != "reward"},
        finish_reason_of("finish_reason", fields.get("finish_reason")),
    )
    return Line(
        prompt=prompt_of("prompt", fields["prompt"], reading.raw),
        candidates=(candidate,),
        tags={} if fields.get("step") is None else {"step": json.dumps(fields["step"])},
        ignored=frozenset(fields.keys() - _KNOWN - columns.keys()),
    )


def _is_reward(name: str, value: object, reading: Reading) -> bool:
    if reading.weights is not None:
        return name in reading.weights
    if isinstance(value, int) and (isinstance(value, bool) or reading.typed):
        return name == "reward"
    return value is None or isinstance(value, int | float) or name == "reward"


def _completion(value: object) -> str:
    if isinstance(value, str):
        return value
    messages = messages_of("completion", value)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise BadLine(f"completion: {len(messages)} messages; only a single one by the assistant can be imported")
    return text_of("completion[0].content", messages[0].content)

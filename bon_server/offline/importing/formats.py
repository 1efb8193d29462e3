"""The import formats, one reader each: from a line of a file to what is in it of a prompt and its scored candidates.

`grouped`: one line, one prompt with its scored responses.

    {"prompt": str | [{"role", "content"}, …], "responses": [str, …], "rewards": [number | null, …],
     "scores"?: {name: [number | null, …]}, "finish_reasons"?: [str | null, …],
     "reward_context"?: {str: str}, "tags"?: {str: str}, "id"?: str}

The lists run parallel to `responses`. A null reward is a candidate without one, `unscored`; NaN or infinity makes it
`non_finite`. `scores` become entries of a candidate's `rewards`, which holds finite numbers only.

`openrlhf`: what OpenRLHF's `batch_inference` writes, one line a candidate.

    {"input": str, "output": str, "reward"?: number}

Lines without `reward` are those of its generation step; their candidates are `unscored`.

`open-instruct`: the scores file of its rejection sampling, one line a candidate.

    {"messages": [{"role", "content"}, …], "model_completion"?: str, "reference_completion"?: str,
     "score"?: {reward model: number} | number}

The last message is the completion. Several reward models give a sum and an entry of `rewards` each. Lines without
`score` are those of its generation step; their candidates are `unscored`.

`trl-grpo`: TRL's completion log (`log_completions=True`), one row a candidate.

    step, prompt, completion, a floating-point column per reward function, columns of `log_extra`, advantage

Prompt and completion are strings or lists of messages. The reward is the sum of the reward columns, or the column
`reward` where there is one (older TRL); null in a column means that its function does not apply. The file does not say
which columns are rewards nor how they are weighted: floating-point ones are taken, with weight 1, unless told.

`verl`: its dumps of rollouts and validation generations, one line a candidate.

    {"input": str, "output": str, "score": number, "step"?: int, "gts"?: any, more of the reward function…}

`rollout_data_dir` and `validation_data_dir` hold one file a step. Numbers and truth values of the reward function
become entries of `rewards`; `gts`, the ground truth, goes to the reward context.
"""

from __future__ import annotations

import json
from typing import Any

from bon_server.core.types import Candidate, Prompt
from bon_server.offline.importing.line import (
    BadImportLine,
    Fields,
    ImportLine,
    Reading,
    candidate_of,
    finish_reason_of,
    messages_of,
    number_of,
    prompt_of,
    required,
    reward_of,
    string_map_of,
    text_of,
)

MAX_ID_CHARACTERS = 256
_GROUPED_REQUIRED = {"prompt", "responses", "rewards"}
_GROUPED_OPTIONAL = {"scores", "finish_reasons", "reward_context", "tags", "id"}


def read_grouped(fields: Fields, reading: Reading) -> ImportLine:
    """The line of these fields. Raises `BadImportLine`."""
    required(fields, *_GROUPED_REQUIRED)
    return ImportLine(
        prompt=prompt_of("prompt", fields["prompt"], reading.raw),
        candidates=_candidates(fields),
        reward_context=string_map_of("reward_context", fields.get("reward_context")),
        tags=string_map_of("tags", fields.get("tags")),
        id=_id(fields.get("id")),
        ignored=frozenset(fields.keys() - _GROUPED_REQUIRED - _GROUPED_OPTIONAL),
    )


def _id(value: object) -> str | None:
    if value is not None and not (isinstance(value, str) and 1 <= len(value) <= MAX_ID_CHARACTERS):
        raise BadImportLine(f"id: must be a string of 1 to {MAX_ID_CHARACTERS} characters")
    return value


def _candidates(fields: Fields) -> tuple[Candidate, ...]:
    responses = _list(fields, "responses", None)
    if not responses:
        raise BadImportLine("responses: empty")
    n = len(responses)
    rewards = _numbers("rewards", _list(fields, "rewards", n))
    finish_reasons = _list(fields, "finish_reasons", n) if fields.get("finish_reasons") is not None else [None] * n
    scores = _grouped_scores(fields.get("scores"), n)
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


def _grouped_scores(value: object, n: int) -> dict[str, list[float | None]]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadImportLine("scores: must be an object of lists")
    return {name: _numbers(f"scores.{name}", _list(value, name, n, "scores.")) for name in value}


def _list(fields: Fields, name: str, n: int | None, where: str = "") -> list[Any]:
    value = fields[name]
    if not isinstance(value, list):
        raise BadImportLine(f"{where}{name}: must be a list")
    if n is not None and len(value) != n:
        raise BadImportLine(f"{where}{name}: {len(value)} given for {n} responses")
    return value


def _numbers(name: str, values: list[Any]) -> list[float | None]:
    return [number_of(f"{name}[{index}]", value) for index, value in enumerate(values)]


_OPENRLHF_KEYS = {"input", "output", "reward", "finish_reason"}


def read_openrlhf(fields: Fields, reading: Reading) -> ImportLine:
    """The line of these fields. Raises `BadImportLine`."""
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
    return ImportLine(prompt, (candidate,), ignored=frozenset(fields.keys() - _OPENRLHF_KEYS - columns.keys()))


_OPEN_INSTRUCT_KEYS = {"messages", "model_completion", "reference_completion", "score", "finish_reason"}


def read_open_instruct(fields: Fields, reading: Reading) -> ImportLine:
    """The line of these fields. Raises `BadImportLine`."""
    required(fields, "messages")
    *before, last = messages_of("messages", fields["messages"])
    if last.role != "assistant":
        raise BadImportLine(f"messages[{len(before)}].role: the last message must be by the assistant")
    if not before:
        raise BadImportLine("messages: nothing before the completion")
    if fields.get("model_completion") not in (None, last.content):
        raise BadImportLine("model_completion: is not the last message, so it is unknown which of them was scored")
    scores = _scores_by_model(fields.get("score"))
    candidate = candidate_of(
        0,
        last.content,
        reward_of(scores, reading, list(scores)),
        scores if len(scores) > 1 or reading.weights else {},
        finish_reason_of("finish_reason", fields.get("finish_reason")),
    )
    return ImportLine(
        prompt=Prompt(messages=tuple(before)),
        candidates=(candidate,),
        reward_models=tuple(sorted(filter(None, reading.weights or scores))),
        reward_context=_reference_context(fields.get("reference_completion")),
        ignored=frozenset(fields.keys() - _OPEN_INSTRUCT_KEYS),
    )


def _scores_by_model(value: object) -> dict[str, float | None]:
    """By reward model; the one without a name is called by the empty string."""
    if isinstance(value, dict):
        return {name: number_of(f"score.{name}", score) for name, score in value.items()}
    return {"": number_of("score", value)}


def _reference_context(reference: object) -> dict[str, str]:
    return {} if reference is None else {"reference_completion": text_of("reference_completion", reference)}


_TRL_KEYS = {"step", "prompt", "completion", "finish_reason"}
_TRL_NO_REWARD = _TRL_KEYS | {"advantage"}


def read_trl_grpo(fields: Fields, reading: Reading) -> ImportLine:
    """The line of these fields. Raises `BadImportLine`."""
    required(fields, "prompt", "completion")
    columns = {
        name: number_of(name, value)
        for name, value in fields.items()
        if name not in _TRL_NO_REWARD and _is_reward(name, value, reading)
    }
    default = ["reward"] if "reward" in columns else list(columns)
    candidate = candidate_of(
        0,
        _completion(fields["completion"]),
        reward_of(columns, reading, default),
        {name: part for name, part in columns.items() if name != "reward"},
        finish_reason_of("finish_reason", fields.get("finish_reason")),
    )
    return ImportLine(
        prompt=prompt_of("prompt", fields["prompt"], reading.raw),
        candidates=(candidate,),
        tags={} if fields.get("step") is None else {"step": json.dumps(fields["step"])},
        ignored=frozenset(fields.keys() - _TRL_KEYS - columns.keys()),
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
        raise BadImportLine(f"completion: {len(messages)} messages; only a single one by the assistant can be imported")
    return text_of("completion[0].content", messages[0].content)


_VERL_KEYS = {"input", "output", "step", "gts", "finish_reason"}


def read_verl(fields: Fields, reading: Reading) -> ImportLine:
    """The line of these fields. Raises `BadImportLine`."""
    required(fields, "input", "output", "score")
    columns = {"score": number_of("score", fields["score"])}
    for name, value in fields.items():
        if name not in _VERL_KEYS and (isinstance(value, int | float) or name in (reading.weights or ())):
            columns[name] = number_of(name, float(value) if isinstance(value, bool) else value)
    parts = {name: part for name, part in columns.items() if reading.weights or name != "score"}
    candidate = candidate_of(
        0,
        text_of("output", fields["output"]),
        reward_of(columns, reading, ["score"]),
        parts,
        finish_reason_of("finish_reason", fields.get("finish_reason")),
    )
    return ImportLine(
        prompt=prompt_of("input", fields["input"], reading.raw),
        candidates=(candidate,),
        reward_context={} if fields.get("gts") is None else {"ground_truth": _ground_truth_text(fields["gts"])},
        tags={} if fields.get("step") is None else {"step": json.dumps(fields["step"])},
        ignored=frozenset(fields.keys() - _VERL_KEYS - columns.keys()),
    )


def _ground_truth_text(ground_truth: object) -> str:
    if isinstance(ground_truth, str):
        return ground_truth
    return json.dumps(ground_truth, ensure_ascii=False, sort_keys=True)

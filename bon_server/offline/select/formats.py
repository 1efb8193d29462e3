"""The formats of a training set: what one line of it holds.

    trl-sft      {"prompt", "completion"}                   TRL's prompt-completion format
    trl-tokens   {"input_ids", "labels"}                    the sampled tokens themselves, labels −100 for the prompt
    trl-dpo      {"prompt", "chosen", "rejected"}           TRL's preference format
    trl-kto      {"prompt", "completion", "label"}          TRL's unpaired preferences: two lines for each pair
    messages     {"messages"}                               TRL's language modelling format: the whole chat
    openai       {"messages"}                               OpenAI's, answers within the prompt with "weight" 0
    openai-dpo   {"input", "preferred_output", "non_preferred_output"}
    sharegpt     {"conversations": [{"from", "value"}]}
    grouped      {"prompt", "responses", "rewards", …}      all chosen of a prompt; `bon log import` reads it, with the
                                                            parts of rewards as "scores"
    parquet      the columns of trl-sft with `reward`, or of trl-dpo, in Parquet files

Prompt and completion are lists of messages for prompts that were chats, strings for texts that were continued. TRL
takes the form of the first row for that of the whole data set, so each form has files of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bon_server.offline.select.rows import CHAT, TEXT, TOKENS

Message = dict[str, Any]
Prompt = str | list[Message]
IGNORED = -100
"""Label of a token that is not trained on (PyTorch's cross-entropy)."""
_SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


class ExportedCandidate(NamedTuple):
    """One candidate of a line."""

    text: str
    reward: float | None
    finish_reason: str | None
    weight: float
    prompt_token_ids: list[int] | None
    token_ids: list[int] | None
    parts: Mapping[str, float]
    """Of the reward, by name, and the added score that was chosen by."""
    reward_context: Mapping[str, str]
    """Of the request."""


Lines = Callable[[Prompt, Sequence[ExportedCandidate]], Iterator[dict[str, Any]]]
"""Prompt and candidates (pairs: chosen, rejected; `grouped`: all of the prompt; else one) to objects, one a line."""


def _answer(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _completion(prompt: Prompt, said: ExportedCandidate) -> Prompt:
    return said.text if isinstance(prompt, str) else _answer(said.text)


def _trl_sft(prompt: Prompt, said: Sequence[ExportedCandidate]) -> Iterator[dict[str, Any]]:
    yield {"prompt": prompt, "completion": _completion(prompt, said[0])}


def _trl_tokens(prompt: Prompt, said: Sequence[ExportedCandidate]) -> Iterator[dict[str, Any]]:
    before, sampled = said[0].prompt_token_ids or [], said[0].token_ids or []
    yield {"input_ids": before + sampled, "labels": [IGNORED] * len(before) + sampled}


def _trl_dpo(prompt: Prompt, said: Sequence[ExportedCandidate]) -> Iterator[dict[str, Any]]:
    chosen, rejected = (_completion(prompt, one) for one in said)
    yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _trl_kto(prompt: Prompt, said: Sequence[ExportedCandidate]) -> Iterator[dict[str, Any]]:
    for label, one in zip((True, False), said, strict=True):
        yield {"prompt": prompt, "completion": _completion(prompt, one), "label": label}


def _messages(prompt: Prompt, said: Sequence[ExportedCandidate]) -> Iterator[dict[str, Any]]:
    assert not isinstance(prompt, str)
    yield {"messages": prompt + _answer(said[0].text)}


def _openai(prompt: Prompt, said: Sequence[ExportedCandidate]) -> Iterator[dict[str, Any]]:
    assert not isinstance(prompt, str)
    # OpenAI trains on every answer of a chat unless told not to, and those before were not chosen by a reward.
    before = [one | {"weight": 0} if one["role"] == "assistant" else one for one in prompt]
    yield {"messages": before + _answer(said[0].text)}


def _openai_dpo(prompt: Prompt, said: Sequence[ExportedCandidate]) -> Iterator[dict[str, Any]]:
    chosen, rejected = said
    yield {
        "input": {"messages": prompt, "tools": [], "parallel_tool_calls": True},
        "preferred_output": _answer(chosen.text),
        "non_preferred_output": _answer(rejected.text),
    }


def _sharegpt(prompt: Prompt, said: Sequence[ExportedCandidate]) -> Iterator[dict[str, Any]]:
    assert not isinstance(prompt, str)
    turns = [{"from": _SHAREGPT.get(one["role"], one["role"]), "value": one["content"]} for one in prompt]
    yield {"conversations": [*turns, {"from": "gpt", "value": said[0].text}]}


def _grouped(prompt: Prompt, said: Sequence[ExportedCandidate]) -> Iterator[dict[str, Any]]:
    line: dict[str, Any] = {
        "prompt": prompt,
        "responses": [one.text for one in said],
        "rewards": [one.reward for one in said],
        "finish_reasons": [one.finish_reason for one in said],
        "weights": [one.weight for one in said],
    }
    names = sorted({name for one in said for name in one.parts})
    if names:
        line["scores"] = {name: [one.parts.get(name) for one in said] for name in names}
    if said[0].reward_context:
        line["reward_context"] = dict(said[0].reward_context)
    yield line


@dataclass(frozen=True, slots=True)
class ExportFormat:
    """A format."""

    lines: Lines | None
    """None: written as columns, see `writing.py`."""
    forms: tuple[int, ...] = (CHAT, TEXT)
    """Of prompts that it can hold."""
    tokens: bool = False
    """Whether it holds token ids."""
    whole_prompts: bool = False
    """Whether all chosen candidates of a prompt make one line."""
    parts: bool = False
    """Whether it holds parts of rewards, and the reward context."""
    line_per_candidate: bool = False
    """Whether each candidate of a pair has a line of its own."""
    suffix: str = ".jsonl"


FORMATS = {
    "trl-sft": ExportFormat(_trl_sft),
    "trl-tokens": ExportFormat(_trl_tokens, (CHAT, TEXT, TOKENS), tokens=True),
    "trl-dpo": ExportFormat(_trl_dpo),
    "trl-kto": ExportFormat(_trl_kto, line_per_candidate=True),
    "messages": ExportFormat(_messages, (CHAT,)),
    "openai": ExportFormat(_openai, (CHAT,)),
    "openai-dpo": ExportFormat(_openai_dpo, (CHAT,)),
    "sharegpt": ExportFormat(_sharegpt, (CHAT,)),
    "grouped": ExportFormat(_grouped, whole_prompts=True, parts=True),
    "parquet": ExportFormat(None, suffix=".parquet"),
}

"""Friendly arguments to protobuf requests.

Only the form is checked here; ranges are the server's to judge, since it alone knows them. `None` means unset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, TypeVar, Unpack
from uuid import uuid4

from bon.v1 import bon_pb2 as pb

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt that is continued as it is, without a chat template."""

    text: str


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt that is already tokenised with the policy's tokenizer."""

    ids: Sequence[int]


Prompt = str | Text | Tokens | Sequence[Mapping[str, str]]
"""A plain string is one user message of a chat; mappings are chat messages with `role` and `content`, oldest first."""


class ScoreOptions(TypedDict, total=False):
    """What Score and Generate both take."""

    request_id: str | None
    """Idempotency key: at most 128 characters of [A-Za-z0-9._:-]. Unset: a fresh UUID."""
    reward_context: Mapping[str, str] | None
    """Handed to reward functions, for example a reference answer."""
    tags: Mapping[str, str] | None
    """Free labels, kept in the log."""
    log_policy: Literal["full", "metadata_only", "none"] | None
    """How much the log keeps; default `full`. The other two cannot be replayed, so they give up safe retries."""


class GenerateOptions(ScoreOptions, total=False):
    """Everything about a GenerateRequest but its prompt. Ranges and defaults are documented in the proto."""

    n: int | None
    """Candidates to sample. Unset: the server's default."""
    view: Literal["winner", "all"] | None
    """Whether the answer carries all candidates or the best alone (default)."""
    include_token_ids: bool
    """Whether candidates carry their token ids."""
    temperature: float | None
    top_p: float | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    top_k: int | None
    max_tokens: int | None
    seed: int | None
    """Seed of candidate 0; candidate i uses `seed + i`."""
    stop: Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    json_schema: str | None
    """The form of completions, as JSON text. At most one of `json_schema`, `regex` and `choice`."""
    regex: str | None
    """Matched by whole completions; Rust's syntax, without look-around and back-references."""
    choice: Sequence[str] | None
    """The completions that are allowed."""
    rule: Literal["argmax", "soft"] | None
    """How the answer is chosen; default `argmax`."""
    selection_temperature: float | None
    """Temperature of `soft`, in units of reward."""
    selection_seed: int | None
    """Seed of `soft`."""
    stop_at_reward: float | None
    price_per_candidate: float | None
    min_n: int | None
    prune_fraction: float | None
    prune_after_tokens: int | None


_VIEWS: Mapping[str, pb.CandidateView.ValueType] = {
    "winner": pb.CANDIDATE_VIEW_WINNER,
    "all": pb.CANDIDATE_VIEW_ALL,
}
_RULES: Mapping[str, pb.SelectionRule.ValueType] = {
    "argmax": pb.SELECTION_RULE_ARGMAX,
    "soft": pb.SELECTION_RULE_SOFT,
}
_LOG_POLICIES: Mapping[str, pb.LogPolicy.ValueType] = {
    "full": pb.LOG_POLICY_FULL,
    "metadata_only": pb.LOG_POLICY_METADATA_ONLY,
    "none": pb.LOG_POLICY_NONE,
}


def generate_request(prompt: Prompt, **options: Unpack[GenerateOptions]) -> pb.GenerateRequest:
    """A GenerateRequest, with a fresh `request_id` unless one is given, so that a retry is not a second sample.

    Raises TypeError for an unknown option and ValueError for a value that the message cannot hold.
    """
    _refuse_unknown(options, GenerateOptions)
    request = pb.GenerateRequest(
        request_id=options.get("request_id") or str(uuid4()),
        n=options.get("n"),
        sampling=_unless_empty(_sampling(options)),
        selection=_unless_empty(_selection(options)),
        budget=_unless_empty(_budget(options)),
        view=_pick("view", options.get("view"), _VIEWS) or pb.CANDIDATE_VIEW_UNSPECIFIED,
        include_token_ids=options.get("include_token_ids", False),
        reward_context=options.get("reward_context"),
        tags=options.get("tags"),
        log_policy=_log_policy(options.get("log_policy")),
    )
    _set_prompt(request, prompt)
    return request


def score_request(prompt: Prompt, completions: Sequence[str], **options: Unpack[ScoreOptions]) -> pb.ScoreRequest:
    """A ScoreRequest, with a fresh `request_id` unless one is given. Raises as `generate_request`."""
    _refuse_unknown(options, ScoreOptions)
    request = pb.ScoreRequest(
        request_id=options.get("request_id") or str(uuid4()),
        completions=_texts("completions", completions),
        reward_context=options.get("reward_context"),
        tags=options.get("tags"),
        log_policy=_log_policy(options.get("log_policy")),
    )
    _set_prompt(request, prompt)
    return request


def feedback_request(
    request_id: str,
    name: str,
    value: bool | float | str,
    *,
    candidate_index: int | None = None,
    feedback_id: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> pb.RecordFeedbackRequest:
    """An observation on a logged request, or on one of its candidates, with a fresh `feedback_id` unless given."""
    request = pb.RecordFeedbackRequest(
        feedback_id=feedback_id or str(uuid4()),
        request_id=request_id,
        candidate_index=candidate_index,
        name=name,
        tags=tags,
    )
    if isinstance(value, bool):  # before numbers: a bool is an int
        request.bool_value = value
    elif isinstance(value, str):
        request.string_value = value
    else:
        request.double_value = value
    return request


def _set_prompt(request: pb.GenerateRequest | pb.ScoreRequest, prompt: Prompt) -> None:
    if isinstance(prompt, Text):
        request.text = prompt.text
    elif isinstance(prompt, Tokens):
        request.tokens.CopyFrom(pb.Tokens(ids=prompt.ids))
    elif isinstance(prompt, str):
        request.chat.CopyFrom(pb.Chat(messages=[pb.ChatMessage(role="user", content=prompt)]))
    else:
        request.chat.CopyFrom(pb.Chat(messages=[_message(message) for message in prompt]))


def _message(message: Mapping[str, str]) -> pb.ChatMessage:
    if not isinstance(message, Mapping) or message.keys() != {"role", "content"}:
        given = sorted(message) if isinstance(message, Mapping) else type(message).__name__
        raise ValueError(f"a chat message has the keys role and content, not {given}")
    return pb.ChatMessage(role=message["role"], content=message["content"])


def _sampling(options: GenerateOptions) -> pb.SamplingParams:
    sampling = pb.SamplingParams(
        temperature=options.get("temperature"),
        top_p=options.get("top_p"),
        min_p=options.get("min_p"),
        presence_penalty=options.get("presence_penalty"),
        frequency_penalty=options.get("frequency_penalty"),
        repetition_penalty=options.get("repetition_penalty"),
        top_k=options.get("top_k"),
        max_tokens=options.get("max_tokens"),
        seed=options.get("seed"),
        stop=_texts("stop", options.get("stop")),
        stop_token_ids=options.get("stop_token_ids"),
    )
    _set_constraint(sampling, options)
    return sampling


def _set_constraint(sampling: pb.SamplingParams, options: GenerateOptions) -> None:
    json_schema, regex = options.get("json_schema"), options.get("regex")
    choice = _texts("choice", options.get("choice"))
    # A oneof keeps the last one set, silently.
    if sum(constraint is not None for constraint in (json_schema, regex, choice)) > 1:
        raise ValueError("at most one of json_schema, regex and choice can be given")
    if json_schema is not None:
        sampling.json_schema = json_schema
    elif regex is not None:
        sampling.regex = regex
    elif choice is not None:
        sampling.choice.CopyFrom(pb.Choice(choices=choice))


def _selection(options: GenerateOptions) -> pb.Selection:
    return pb.Selection(
        rule=_pick("rule", options.get("rule"), _RULES) or pb.SELECTION_RULE_UNSPECIFIED,
        temperature=options.get("selection_temperature"),
        seed=options.get("selection_seed"),
    )


def _budget(options: GenerateOptions) -> pb.Budget:
    return pb.Budget(
        stop_at_reward=options.get("stop_at_reward"),
        price_per_candidate=options.get("price_per_candidate"),
        min_n=options.get("min_n"),
        prune_fraction=options.get("prune_fraction"),
        prune_after_tokens=options.get("prune_after_tokens"),
    )


_Part = TypeVar("_Part", pb.SamplingParams, pb.Selection, pb.Budget)


def _unless_empty(part: _Part) -> _Part | None:
    """None for a message without any field set: a present but empty one would ask for the feature."""
    return part if part.ListFields() else None


def _log_policy(name: str | None) -> pb.LogPolicy.ValueType:
    return _pick("log_policy", name, _LOG_POLICIES) or pb.LOG_POLICY_UNSPECIFIED


def _pick(option: str, name: str | None, values: Mapping[str, _T]) -> _T | None:
    if name is not None and name not in values:
        raise ValueError(f"{option} is {name!r}; allowed: {', '.join(values)}")
    return None if name is None else values[name]


def _texts(option: str, texts: Sequence[str] | None) -> Sequence[str] | None:
    """Refuses a lone string, which is a sequence of its characters."""
    if isinstance(texts, str):
        raise TypeError(f"{option} is a string; it has to be a list of strings")
    return texts


def _refuse_unknown(options: Mapping[str, object], allowed: type) -> None:
    unknown = options.keys() - allowed.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")

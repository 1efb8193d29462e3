"""Protobuf requests → `Request`: defaults filled in, prompt tokenised, lengths checked."""

from __future__ import annotations

import copy
import hashlib
import secrets
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import uuid4

from bon.v1 import bon_pb2 as pb
from google.protobuf.message import DecodeError, Message

from bon_server.config.settings import DefaultsConfig, LimitsConfig, LogConfig
from bon_server.core.best_of_n import Policy
from bon_server.core.errors import FieldViolation, InvalidRequest
from bon_server.core.types import Budget, LogPolicy, Prompt, Request, Sampling, SelectionRule
from bon_server.core.types import Message as ChatMessage
from bon_server.serving.content import refuse_forbidden
from bon_server.serving.rpc.validate import check_generate, check_score

AnyMessage = TypeVar("AnyMessage", bound=Message)

OPTIONAL_SAMPLING = ("top_p", "min_p", "top_k", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed")


def parse(message_type: Callable[[], AnyMessage], data: bytes) -> AnyMessage:
    """The bytes as a message; raises `InvalidRequest` where protobuf cannot read them."""
    message = message_type()
    try:
        message.ParseFromString(data)
    except DecodeError:
        name = message.DESCRIPTOR.full_name
        raise InvalidRequest(FieldViolation("message", f"{len(data)} bytes are not a {name}")) from None
    return message


async def to_generate(
    message: pb.GenerateRequest,
    principal: str,
    policy: Policy,
    limits: LimitsConfig,
    defaults: DefaultsConfig,
    log: LogConfig,
) -> Request:
    """Raises `InvalidRequest` or `UnsupportedOption`; tokenises off the event loop."""
    check_generate(message, limits, defaults)
    log_policy = _to_log_policy(message.log_policy, log)
    prompt = _to_prompt(message)
    encoded = await policy.encode(prompt)
    room = _room_for_completion(message, len(encoded.token_ids), policy.max_model_len, limits)
    sampling = _to_sampling(message.sampling, defaults, room)
    await policy.check(sampling)
    n = message.n if message.HasField("n") else (defaults.n if sampling.temperature > 0 else 1)
    return Request(
        request_id=message.request_id or uuid4().hex,
        principal=principal,
        digest=digest(message),
        prompt=prompt,
        prompt_token_ids=encoded.token_ids,
        reward_prompt=prompt if prompt.token_ids is None else Prompt(text=encoded.text),
        n=n,
        sampling=sampling,
        **_to_selection(message.selection),
        budget=_to_budget(message.budget),
        reward_context=dict(message.reward_context),
        tags=dict(message.tags),
        log_policy=log_policy,
        new_id=not message.request_id,
    )


async def to_score(
    message: pb.ScoreRequest, principal: str, policy: Policy, limits: LimitsConfig, log: LogConfig
) -> Request:
    """Raises `InvalidRequest` or `UnsupportedOption`. Only token prompts are given to the policy, to be decoded."""
    check_score(message, limits)
    log_policy = _to_log_policy(message.log_policy, log)
    prompt = _to_prompt(message)
    reward_prompt = prompt
    if prompt.token_ids is not None:
        reward_prompt = Prompt(text=(await policy.encode(prompt)).text)
    return Request(
        request_id=message.request_id or uuid4().hex,
        principal=principal,
        digest=digest(message),
        prompt=prompt,
        prompt_token_ids=prompt.token_ids or (),
        reward_prompt=reward_prompt,
        n=len(message.completions),
        sampling=None,
        given=tuple(message.completions),
        reward_context=dict(message.reward_context),
        tags=dict(message.tags),
        log_policy=log_policy,
        new_id=not message.request_id,
    )


def digest(message: pb.GenerateRequest | pb.ScoreRequest) -> str:
    """SHA-256 (hex) of the request without its id and without fields this version does not know."""
    anonymous = copy.deepcopy(message)
    anonymous.ClearField("request_id")
    anonymous.DiscardUnknownFields()
    kind = anonymous.DESCRIPTOR.full_name.encode()
    return hashlib.sha256(kind + anonymous.SerializeToString(deterministic=True)).hexdigest()


def _to_log_policy(value: pb.LogPolicy.ValueType, log: LogConfig) -> LogPolicy:
    name = pb.LogPolicy.Name(value or pb.LOG_POLICY_FULL).removeprefix("LOG_POLICY_")
    log_policy = LogPolicy[name]
    refuse_forbidden(log_policy, log)
    return log_policy


def _to_prompt(message: pb.GenerateRequest | pb.ScoreRequest) -> Prompt:
    form = message.WhichOneof("prompt")
    if form == "text":
        return Prompt(text=message.text)
    if form == "tokens":
        return Prompt(token_ids=tuple(message.tokens.ids))
    return Prompt(messages=tuple(ChatMessage(turn.role, turn.content) for turn in message.chat.messages))


def _room_for_completion(
    message: pb.GenerateRequest, prompt_tokens: int, max_model_len: int, limits: LimitsConfig
) -> int:
    """Tokens that a completion may have; raises where the prompt alone is too long or leaves less than asked for."""
    longest = min(limits.max_prompt_tokens or max_model_len - 1, max_model_len - 1)
    if prompt_tokens > longest:
        form = message.WhichOneof("prompt") or "prompt"
        raise InvalidRequest(FieldViolation(form, f"{prompt_tokens} tokens long, allowed are {longest}"))
    room = max_model_len - prompt_tokens
    if message.sampling.max_tokens > room:
        raise InvalidRequest(
            FieldViolation(
                "sampling.max_tokens",
                f"{message.sampling.max_tokens} with a prompt of {prompt_tokens} tokens; the context of "
                f"{max_model_len} leaves {room}",
            )
        )
    return room


def _to_selection(selection: pb.Selection) -> dict[str, Any]:
    if selection.rule != pb.SELECTION_RULE_SOFT:
        return {"rule": SelectionRule.ARGMAX}
    seed = selection.seed if selection.HasField("seed") else secrets.randbits(63)
    return {
        "rule": SelectionRule.SOFT,
        "selection_temperature": selection.temperature,
        "selection_seed": seed,
    }


def _to_budget(budget: pb.Budget) -> Budget:
    return Budget(**{field.name: value for field, value in budget.ListFields()})


def _to_sampling(sampling: pb.SamplingParams, defaults: DefaultsConfig, room: int) -> Sampling:
    given = {name: getattr(sampling, name) for name in OPTIONAL_SAMPLING if sampling.HasField(name)}  # type: ignore[arg-type]
    given.setdefault("top_p", defaults.top_p)
    return Sampling(
        temperature=sampling.temperature if sampling.HasField("temperature") else defaults.temperature,
        max_tokens=sampling.max_tokens if sampling.HasField("max_tokens") else min(defaults.max_tokens, room),
        stop=tuple(sampling.stop),
        stop_token_ids=tuple(sampling.stop_token_ids),
        json_schema=sampling.json_schema if sampling.HasField("json_schema") else None,
        regex=sampling.regex if sampling.HasField("regex") else None,
        choice=tuple(sampling.choice.choices) if sampling.HasField("choice") else None,
        **given,
    )

"""The record: one row of the log, one request with all its candidates. Written online, read offline, one type.

In the spool a record is MessagePack, on a screen a line of JSON, in segments a Parquet row with these columns. The
schema only grows: a new field has a default, so that new code reads old records, and readers ignore fields they do
not know. Values that can be computed from others (ranks, gains, KL) are not stored.

`reward_model_names` names the reward models of a record, so that rewards of different ones are told apart.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from bon_server.core.types import (
    Budget,
    Candidate,
    CandidateStatus,
    Kind,
    Message,
    ModelRef,
    Outcome,
    PolicyRef,
    Prompt,
    Sampling,
    SelectionReason,
    SelectionRule,
)

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Time spent in each stage, in nanoseconds, up to the commit."""

    queue: int = 0
    """Waiting for a permit."""
    sample: int = 0
    """From the permit to the last sampled token."""
    score: int = 0
    """While at least one candidate was being scored."""
    overlap_ratio: float = 0.0
    """Share of `score` during which sampling still ran, 0 to 1; the one field that is no time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One attempt at one request."""

    request_id: str
    request_digest: str
    """SHA-256 of the request without its id; imports: of the line. Empty: what was sent or said is not logged as it
    was, so it cannot be replayed, and must not be guessed from a digest."""
    kind: Kind
    outcome: Outcome
    created_at: datetime
    """When the request began, UTC."""
    prompt_hash: str
    """Identity of the prompt as it is logged, see `prompt_hash`; without content that of the request id."""
    candidates: tuple[Candidate, ...]
    """In index order; candidate i has index i."""
    n: int
    """Candidates asked for."""
    schema_version: int = SCHEMA_VERSION
    attempt: int = 1
    """1 for the first try of a request id, counting up."""
    principal: str = ""
    """Who asked; empty: anonymous."""
    ordinal: int | None = None
    """Commit order within the writer, given by the spool; line order for an import."""
    prompt_text: str | None = None
    prompt_messages: tuple[Message, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    """What the policy was given; None: no policy tokenised it."""
    policy: PolicyRef | None = None
    """None: the completions came from elsewhere."""
    reward_models: tuple[ModelRef, ...] = ()
    sampling: Sampling | None = None
    budget: Budget | None = None
    """None: no budget was set."""
    rule: SelectionRule | None = None
    selection_reason: SelectionReason | None = None
    selection_temperature: float | None = None
    """Of the rule SOFT, in units of reward."""
    selection_seed: int | None = None
    """The seed that SOFT drew with."""
    selected_index: int | None = None
    """Index of the winner; None: nothing was chosen."""
    reward_context: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    timings: StageTimes = StageTimes()
    reward_model_tokens: int = 0
    """Tokens the reward models read for it."""
    error: str | None = None
    """Kind of the failure of a failed attempt, without content."""
    content_logged: bool = True
    """False: logged without prompt, completions and tokens; cannot be replayed."""

    @property
    def prompt(self) -> Prompt:
        """The prompt in the form the caller gave it."""
        if self.prompt_text is not None:
            return Prompt(text=self.prompt_text)
        if self.prompt_messages is not None:
            return Prompt(messages=self.prompt_messages)
        return Prompt(token_ids=self.prompt_token_ids)


_to_msgpack = msgspec.msgpack.Encoder()
_from_msgpack = msgspec.msgpack.Decoder(Record)
_to_json = msgspec.json.Encoder()
_to_canonical_json = msgspec.json.Encoder(order="sorted")


def encode(record: Record) -> bytes:
    """The record as MessagePack, as the spool holds it.

    Raises ValueError, without content, for what must not reach the log: a reward that is not finite or does not fit
    its status, candidates out of order, text that is not Unicode, a number over 64 bits, a time without time zone.
    """
    if record.created_at.tzinfo is None:
        raise ValueError("created_at has no time zone")
    for index, candidate in enumerate(record.candidates):
        _check(index, candidate)
    try:
        return _to_msgpack.encode(record)
    except UnicodeEncodeError:
        raise ValueError("text has a lone surrogate, which is not Unicode") from None
    except OverflowError:
        raise ValueError("an integer does not fit 64 bits") from None


def _check(index: int, candidate: Candidate) -> None:
    if candidate.index != index:
        raise ValueError(f"candidates[{index}].index is {candidate.index}; candidates are logged in index order")
    if (candidate.reward is not None) != (candidate.status is CandidateStatus.SCORED):
        raise ValueError(f"candidates[{index}] has status {candidate.status}: exactly the scored ones have a reward")
    parts = (candidate.reward or 0.0, *candidate.rewards.values())
    if not all(map(math.isfinite, parts)):
        raise ValueError(f"candidates[{index}] has a reward that is not finite")


def decode(blob: bytes) -> Record:
    """Inverse of `encode`; raises `msgspec.DecodeError` on bytes that are not a record."""
    return _from_msgpack.decode(blob)


def to_json(record: Record) -> bytes:
    """The record as one line of JSON without the line feed."""
    return _to_json.encode(record)


def to_long_json(record: Record) -> list[bytes]:
    """One line of JSON per candidate: its columns after those of its request, whose `error` is `request_error`."""
    request: dict[str, object] = msgspec.to_builtins(record, builtin_types=(datetime,))
    request.pop("candidates")
    request["request_error"] = request.pop("error")
    return [_to_json.encode(request | msgspec.to_builtins(candidate)) for candidate in record.candidates]


def prompt_hash(prompt: Prompt, reward_context: Mapping[str, str]) -> str:
    """SHA-256 (hex) of the canonical JSON of the prompt as given and its reward context.

    Canonical: `{"prompt":{FORM:VALUE},"reward_context":{…}}` with the one form that was given (`text`, `messages` or
    `token_ids`), keys sorted, no white space, UTF-8. The reward context is part of it because the same words with
    another reference answer are another problem. Raises ValueError for text that is not Unicode.
    """
    canonical = {"prompt": _given_form(prompt), "reward_context": dict(reward_context)}
    try:
        return hashlib.sha256(_to_canonical_json.encode(canonical)).hexdigest()
    except UnicodeEncodeError:
        raise ValueError("text has a lone surrogate, which is not Unicode") from None


def _given_form(prompt: Prompt) -> dict[str, object]:
    # Written out rather than encoding the dataclass: fields added to it later must not change old hashes.
    if prompt.text is not None:
        return {"text": prompt.text}
    if prompt.messages is not None:
        return {"messages": [{"content": m.content, "role": m.role} for m in prompt.messages]}
    return {"token_ids": prompt.token_ids}


def reward_model_names(models: Sequence[ModelRef]) -> tuple[str, str]:
    """What an ensemble (mostly of one) is called: `ID+…`, and exactly: `ID@REVISION+…`."""
    loose = "+".join(model.id for model in models)
    exact = "+".join(f"{model.id}@{model.revision}" if model.revision else model.id for model in models)
    return loose, exact

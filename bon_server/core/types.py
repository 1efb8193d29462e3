"""The nouns everything else is written in: frozen, free of protobuf, Parquet and engines.

Those that a request has n of are msgspec's Structs, which are made and encoded in a third of a dataclass's time.

Enum values are what the log and JSON files hold: the proto's names in lower case without their prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec


class FinishReason(StrEnum):
    """Why a candidate ends where it ends."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    PRUNED = "pruned"
    ERROR = "error"


class CandidateStatus(StrEnum):
    """What became of a candidate. Exactly the `SCORED` ones have a reward."""

    SCORED = "scored"
    UNSCORED = "unscored"
    CANCELLED = "cancelled"
    PRUNED = "pruned"
    FAILED = "failed"
    NON_FINITE = "non_finite"
    TOO_LONG = "too_long"


class SelectionRule(StrEnum):
    """How the answer is chosen online."""

    ARGMAX = "argmax"
    SOFT = "soft"


class SelectionReason(StrEnum):
    """Why the chosen candidate was chosen."""

    ARGMAX = "argmax"
    SOFT = "soft"
    THRESHOLD = "threshold"
    ADAPTIVE = "adaptive"
    DEADLINE = "deadline"
    SINGLE = "single"


class Outcome(StrEnum):
    """How a request ended. `OK` and `PARTIAL` can be replayed."""

    OK = "ok"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Kind(StrEnum):
    """What a record is of."""

    GENERATE = "generate"
    SCORE = "score"
    IMPORT = "import"


class Durability(StrEnum):
    """When a record counts as committed."""

    FSYNC = "fsync"
    GROUP = "group"
    ASYNC = "async"


class LogPolicy(StrEnum):
    """How much of a request the log may keep."""

    FULL = "full"
    METADATA_ONLY = "metadata_only"
    NONE = "none"


class LogprobKind(StrEnum):
    """Which distribution `logprob` is a sum under."""

    SAMPLED = "sampled"
    """After temperature, penalties, top-k, top-p and min-p: the distribution sampled from."""
    TEMPERATURE_1 = "temperature_1"
    """Greedy sampling: the value at temperature 1, since the greedy distribution is a point."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt in the form the caller gave it: exactly one field is set."""

    text: str | None = None
    """Continued as it is."""
    messages: tuple[Message, ...] | None = None
    """Rendered with the policy's chat template."""
    token_ids: tuple[int, ...] | None = None
    """Continued as they are."""


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the policy reads it."""

    token_ids: tuple[int, ...]
    text: str
    """The rendered text; for token prompts, the decoded one."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters with every default filled in. Ranges are the proto's."""

    temperature: float
    max_tokens: int
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = -1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    """Seed of candidate 0; candidate i uses `seed + i`. None: random."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    json_schema: str | None = None
    """What the completion has to be, in one of three forms; JSON schemas are kept as the text that was sent."""
    regex: str | None = None
    choice: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """When to stop before all candidates are complete; None: never. Meanings are the proto's."""

    stop_at_reward: float | None = None
    price_per_candidate: float | None = None
    min_n: int | None = None
    prune_fraction: float | None = None
    prune_after_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Names a model so exactly that its outputs can be attributed."""

    name: str
    """`policy`, or the reward model's name."""
    id: str
    """Directory name or hub id."""
    revision: str
    """Digest of the weight files, or the hub commit."""


@dataclass(frozen=True, slots=True)
class PolicyRef:
    """The policy as the log names it."""

    id: str
    revision: str
    chat_template_hash: str | None = None
    """SHA-256 of the chat template; None: no template."""


@dataclass(frozen=True, slots=True)
class Request:
    """One validated question, all defaults resolved."""

    request_id: str
    principal: str
    """Who asks; idempotency keys are scoped by it. Empty: anonymous."""
    digest: str
    """SHA-256 of the request as sent, without its id: tells a retry from a reuse of the id."""
    prompt: Prompt
    prompt_token_ids: tuple[int, ...]
    """What the policy is given."""
    reward_prompt: Prompt
    """What the reward model is given: `prompt`, or its text when it came as token ids."""
    n: int
    sampling: Sampling | None
    """None: the completions are `given`."""
    given: tuple[str, ...] = ()
    """(n,) completions the caller brought to be scored; empty: they are sampled."""
    rule: SelectionRule = SelectionRule.ARGMAX
    selection_temperature: float | None = None
    """Temperature of the rule SOFT, in units of reward."""
    selection_seed: int | None = None
    budget: Budget = Budget()
    reward_context: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    log_policy: LogPolicy = LogPolicy.FULL
    new_id: bool = False
    """The caller gave no id and this one was made for the request, so that nothing can be logged under it yet."""


@dataclass(frozen=True, slots=True)
class Milestone:
    """A length at which a sample that goes on shows what it has so far."""

    tokens: int
    """Tokens that it has by then, at least."""
    passed: Callable[[str], None]
    """Called once, on the event loop, with the text so far; never called for a sample that ends before."""


class Completion(msgspec.Struct, frozen=True):
    """What the policy sampled for one candidate."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | None = None
    """The stop string or stop token id that ended it; None: end of text, or not stopped."""
    logprob: float | None = None
    """Sum over its tokens, in nats."""
    logprob_kind: LogprobKind | None = None
    seed: int | None = None
    """The seed it was sampled with."""


class Score(msgspec.Struct, frozen=True):
    """What the reward model said about one completion."""

    status: CandidateStatus
    """SCORED, NON_FINITE, TOO_LONG or FAILED."""
    reward: float | None = None
    """Finite when SCORED, else None."""
    rewards: Mapping[str, float] = msgspec.field(default_factory=dict)
    """Finite parts by reward model name, where several score."""
    error: str | None = None
    """Kind of the failure, without content; None: no failure."""
    tokens: int = 0
    """Tokens the reward models read."""


class Candidate(msgspec.Struct, frozen=True):
    """One sample with its reward, or the reason it has none. The log's `candidates[]`, field by field."""

    index: int
    status: CandidateStatus
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprob: float | None = None
    logprob_kind: LogprobKind | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | None = None
    completion_tokens: int = 0
    seed: int | None = None
    reward: float | None = None
    """Finite when `status` is SCORED, else None."""
    rewards: Mapping[str, float] = msgspec.field(default_factory=dict)
    error: str | None = None
    policy_revision: str = ""
    sampled_ns: int | None = None
    """Last token sampled, since the request began; None: not sampled to the end."""
    scored_ns: int | None = None
    """Reward known, since the request began; None: never."""

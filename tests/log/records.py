"""Records to test with."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from bon_server.core.types import (
    Candidate,
    CandidateStatus,
    FinishReason,
    Kind,
    Message,
    ModelRef,
    Outcome,
    PolicyRef,
    Prompt,
    Sampling,
)
from bon_server.log.record import Record, prompt_hash

ODD_TEXT = 'nul \0 emoji 👩‍🚀 right to left שלום combining é tab\t quote" backslash\\ line\u2028end'
REWARD_MODEL = ModelRef("reward", "a-reward-model", "1f2e")


def scored(index: int, reward: float, **fields: Any) -> Candidate:
    """A complete candidate with a reward."""
    defaults: dict[str, Any] = {
        "text": f"answer {index}",
        "token_ids": tuple(range(1_000, 1_060)),
        "finish_reason": FinishReason.STOP,
        "completion_tokens": 60,
        "policy_revision": "abcd",
    }
    return Candidate(index=index, status=CandidateStatus.SCORED, reward=reward, **(defaults | fields))


def record(request_id: str = "r", rewards: Sequence[float] = (0.5, 0.25), **fields: Any) -> Record:
    """A record of a chat with scored candidates; `fields` replace any of its fields."""
    messages = fields.get("prompt_messages", (Message("user", "What is 3 + 4?"),))
    prompt = Prompt(text=fields["prompt_text"]) if "prompt_text" in fields else Prompt(messages=messages)
    defaults: dict[str, Any] = {
        "request_digest": "d" * 64,
        "kind": Kind.GENERATE,
        "outcome": Outcome.OK,
        "created_at": datetime(2026, 11, 22, 12, 0, 0, 250, tzinfo=UTC),
        "prompt_hash": prompt_hash(prompt, fields.get("reward_context", {})),
        "prompt_messages": prompt.messages,
        "prompt_token_ids": (1, 2, 3),
        "candidates": tuple(scored(index, reward) for index, reward in enumerate(rewards)),
        "policy": PolicyRef("a-policy", "abcd", "ef01"),
        "reward_models": (REWARD_MODEL,),
        "sampling": Sampling(temperature=0.8, max_tokens=60),
    }
    merged = defaults | fields
    return Record(request_id=request_id, n=merged.pop("n", len(merged["candidates"])), **merged)

"""What is read of a record to score its candidates anew, and what is written of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bon_server.offline.scoring import Question
from bon_server.types import CandidateStatus, FinishReason, Message, Prompt, Score

_COMPLETE = (FinishReason.STOP, FinishReason.LENGTH, None)
Key = tuple[str, str, int]
"""Principal, request id, attempt."""


@dataclass(frozen=True, slots=True)
class Text:
    """A candidate, as far as it matters here."""

    text: str = ""
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A record, as far as it matters here."""

    request_id: str
    candidates: tuple[Text, ...]
    attempt: int = 1
    principal: str = ""
    prompt_text: str | None = None
    prompt_messages: tuple[Message, ...] | None = None
    reward_context: Mapping[str, str] = field(default_factory=dict)
    content_logged: bool = True

    @property
    def key(self) -> Key:
        """What it is known by."""
        return self.principal, self.request_id, self.attempt

    def questions(self) -> Iterator[Question | None]:
        """Of each candidate; None: it cannot be asked about."""
        prompt = Prompt(text=self.prompt_text, messages=self.prompt_messages)
        known = self.content_logged and prompt != Prompt()
        for one in self.candidates:
            if known and one.finish_reason in _COMPLETE:
                yield Question(prompt, one.text, tuple(sorted(self.reward_context.items())))
            else:
                yield None


def as_row(ordinal: int, request: Request, scores: Sequence[Score | None]) -> dict[str, Any]:
    """A row as `score_files.SCORES` wants it. scores: (n,) of the candidates; None: not asked about."""
    principal, request_id, attempt = request.key
    candidates = [_as_candidate(index, score) for index, score in enumerate(scores)]
    return {
        "ordinal": ordinal,
        "principal": principal,
        "request_id": request_id,
        "attempt": attempt,
        "candidates": candidates,
    }


def _as_candidate(index: int, score: Score | None) -> dict[str, Any]:
    score = score or Score(CandidateStatus.UNSCORED)
    return {
        "index": index,
        "reward": score.reward,
        "rewards": [{"key": name, "value": part} for name, part in score.rewards.items()],
        "status": score.status.value,
        "error": score.error,
    }

"""What is read of a record to score its candidates anew, and what is written of it.

`score_all` asks for the scores of many completions in order of length.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bon_server.core.protocols import RewardModel
from bon_server.core.types import CandidateStatus, FinishReason, Message, Prompt, Score
from bon_server.models.reward.pairs import prompt_text

TOGETHER = 512
"""Completions that a reward model is asked about at once: as many as a server would have in flight. All of them are
asked in one turn of the event loop, so that the same ones make the same batches every time."""


class Question(NamedTuple):
    """A completion that is to be scored."""

    prompt: Prompt
    completion: str
    context: tuple[tuple[str, str], ...]
    """The request's reward context."""


async def score_all(
    model: RewardModel, questions: Sequence[Question], on_scored: Callable[[int], None] = lambda count: None
) -> dict[Question, Score]:
    """The scores of questions; equal ones are asked once. on_scored: told how many more have their score.

    Raises what the model raises, `RequestError`s.
    """
    together = sorted(dict.fromkeys(questions), key=lambda one: len(prompt_text(one.prompt)) + len(one.completion))
    scores: dict[Question, Score] = {}
    for first in range(0, len(together), TOGETHER):
        some = together[first : first + TOGETHER]
        pending = [asyncio.ensure_future(model.score(one.prompt, one.completion, dict(one.context))) for one in some]
        try:
            scores |= zip(some, await asyncio.gather(*pending), strict=True)
        finally:
            for one in pending:
                one.cancel()
        on_scored(len(some))
    return scores


_COMPLETE = (FinishReason.STOP, FinishReason.LENGTH, None)
Key = tuple[str, str, int]
"""Principal, request id, attempt."""


@dataclass(frozen=True, slots=True)
class RescorableText:
    """A candidate, as far as it matters here."""

    text: str = ""
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class RescorableRequest:
    """A record, as far as it matters here."""

    request_id: str
    candidates: tuple[RescorableText, ...]
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


def as_row(ordinal: int, request: RescorableRequest, scores: Sequence[Score | None]) -> dict[str, Any]:
    """A row as `log.scores.files.SCORES` wants it. scores: (n,) of the candidates; None: not asked about."""
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

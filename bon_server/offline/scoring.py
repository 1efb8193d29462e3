"""The scores of many completions, asked for in order of length."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bon_server.protocols import RewardModel
from bon_server.reward.pairs import prompt_text
from bon_server.types import Prompt, Score

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

"""A prompt and a completion as a reward model reads them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bon_server.core.types import CandidateStatus, Prompt, Score

logger = logging.getLogger(__name__)

PROMPTS_KEPT = 64
"""Tokenised, for what their completions share; more than are scored at the same time."""


@dataclass(frozen=True, slots=True)
class TokenPair:
    """One tokenised prompt with its completion, unpadded."""

    ids: list[int]
    type_ids: list[int] | None
    """Which of the two texts each token belongs to; None where the model does not tell them apart."""
    prompt_tokens: int = 0
    """Leading tokens that all completions of the prompt have; 0: not known, or of no use to the model."""


def prompt_text(prompt: Prompt) -> str:
    """The prompt as one text: a text as it is, a single user message as its content, else lines `role: content`."""
    if prompt.messages is None:
        return prompt.text or ""
    if len(prompt.messages) == 1 and prompt.messages[0].role == "user":
        return prompt.messages[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in prompt.messages)


class PairTokenizer:
    """Tokenises pairs for one model, never cutting them.

    An encoder gets `prompt_text` and the completion as a text pair. A decoder gets a chat rendered with the tokenizer's
    chat template, the completion being the assistant's last turn; a text prompt is simply continued by the completion.
    """

    def __init__(self, tokenizer: Any, decoder: bool) -> None:
        self._tokenizer = tokenizer
        self._tokenize = self._for_decoder if decoder else self._for_encoder
        self._opened = lru_cache(PROMPTS_KEPT)(self._without_completion)

    def __call__(self, prompt: Prompt, completion: str) -> TokenPair:
        """Raises what the template or the tokenizer raise; nothing is known of those."""
        return self._tokenize(prompt, completion)

    def _for_encoder(self, prompt: Prompt, completion: str) -> TokenPair:
        tokens = self._tokenizer(prompt_text(prompt), completion, truncation=False, verbose=False)
        return TokenPair(tokens["input_ids"], tokens.get("token_type_ids"))

    def _for_decoder(self, prompt: Prompt, completion: str) -> TokenPair:
        ids = self._continued(prompt, completion)
        # The last token must be computed anew in any case: the score is taken there.
        return TokenPair(ids, None, min(_common(ids, self._opened(prompt)), len(ids) - 1))

    def _without_completion(self, prompt: Prompt) -> list[int]:
        return self._continued(prompt, "")

    def _continued(self, prompt: Prompt, completion: str) -> list[int]:
        if prompt.messages is None:
            return self._ids((prompt.text or "") + completion, special_tokens=True)
        conversation = [{"role": message.role, "content": message.content} for message in prompt.messages]
        conversation.append({"role": "assistant", "content": completion})
        rendered = self._tokenizer.apply_chat_template(conversation, tokenize=False)
        return self._ids(rendered, special_tokens=False)

    def _ids(self, text: str, special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"]
        return ids


class Unreadable(Exception):
    """A pair that a reward model cannot read."""

    def __init__(self, score: Score) -> None:
        super().__init__(score.status.value)
        self.score = score
        """What becomes of the completion: TOO_LONG, or FAILED with the kind of the failure."""


def read_pair(
    tokenize: PairTokenizer, prompt: Prompt, completion: str, max_model_len: int, vocabulary_size: int
) -> TokenPair:
    """Tokenises a pair for a model of these sizes. Raises Unreadable."""
    try:
        pair = tokenize(prompt, completion)
    except Exception as error:
        # A template or a tokenizer may raise anything about one text.
        logger.warning("tokenising for the reward model failed (%s)", type(error).__name__)
        failed = Score(CandidateStatus.FAILED, error=f"tokenising failed: {type(error).__name__}")
        raise Unreadable(failed) from error
    if len(pair.ids) > max_model_len:
        raise Unreadable(Score(CandidateStatus.TOO_LONG))
    if not pair.ids or max(pair.ids) >= vocabulary_size:
        problem = "no tokens" if not pair.ids else "a token outside the reward model's vocabulary"
        raise Unreadable(Score(CandidateStatus.FAILED, error=problem))
    return pair


def scored(reward: float, tokens: int) -> Score:
    """What a raw logit is: a reward if it is finite. tokens: how many the model read for it."""
    if not math.isfinite(reward):
        return Score(CandidateStatus.NON_FINITE, tokens=tokens)
    return Score(CandidateStatus.SCORED, reward, tokens=tokens)


def _common(some: Sequence[int], others: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    pairs = enumerate(zip(some, others, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(some), len(others)))

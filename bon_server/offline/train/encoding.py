"""Rows to tokens, as the server has them: the prompt as it is sampled from, the completion, and the token that ends it.

TRL would render prompt and completion with the chat template again, and train on what the template puts after the
answer's end (with ChatML a newline that no policy ever samples). Here a completion is its text and, unless it was cut
at `max_tokens`, the token that ends it; `trl-tokens` rows stay exactly what was sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from bon_server.core.errors import ConfigError, InvalidRequest, TrainingError, UnsupportedOption
from bon_server.core.types import FinishReason, Message, Prompt
from bon_server.models.policy.prompts import PromptEncoder
from bon_server.models.weights import ModelFiles
from bon_server.offline.select.formats import IGNORED


class PromptCompletion(NamedTuple):
    """A prompt and a completion of it."""

    prompt_ids: list[int]
    completion_ids: list[int]

    @property
    def input_ids(self) -> list[int]:
        return self.prompt_ids + self.completion_ids

    @property
    def labels(self) -> list[int]:
        return [IGNORED] * len(self.prompt_ids) + self.completion_ids


class Encoder:
    """Tokenises rows for one policy."""

    def __init__(self, tokenizer: Any, files: ModelFiles, stop_ids: frozenset[int]) -> None:
        """stop_ids: the tokens at which the policy ends, see `stop_ids_of`."""
        self.max_model_len = int(files.config.get("max_position_embeddings") or tokenizer.model_max_length)
        self.vocabulary_size = int(files.config.get("vocab_size") or len(tokenizer))
        self.stop_ids = stop_ids
        self._tokenizer = tokenizer
        self._prompts = PromptEncoder(tokenizer, self.vocabulary_size, self.max_model_len)
        self._end_of_text = tokenizer.eos_token_id
        self._end_of_turn = _end_of_turn(tokenizer, stop_ids) if tokenizer.chat_template else self._end_of_text

    def prompt_of(self, prompt: str | Sequence[dict[str, Any]]) -> list[int] | None:
        """Tokens of a prompt as the server samples from them; None: it is longer than the policy's context.

        Raises ConfigError: a chat, and the policy has no chat template. TrainingError: it cannot be a prompt.
        """
        try:
            if isinstance(prompt, str):
                return list(self._prompts.encode_now(Prompt(text=prompt)).token_ids)
            messages = tuple(Message(one["role"], one["content"]) for one in prompt)
            return list(self._prompts.encode_now(Prompt(messages=messages)).token_ids)
        except UnsupportedOption as error:
            raise ConfigError("policy: it has no chat template, and the data holds chats") from error
        except InvalidRequest as error:
            if "context" in str(error):
                return None
            raise TrainingError(str(error)) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise TrainingError("its prompt is neither a text nor a list of messages with role and content") from error

    def said(
        self, prompt: str | Sequence[dict[str, Any]], completion: str | Sequence[dict[str, Any]], ending: str | None
    ) -> PromptCompletion | None:
        """Prompt and completion, which ends unless `ending` is `length`; None: the prompt is too long.

        Raises as `prompt_of`.
        """
        prompt_ids = self.prompt_of(prompt)
        if prompt_ids is None:
            return None
        chat = not isinstance(prompt, str)
        ids = self._completion_ids(prompt if isinstance(prompt, str) else None, prompt_ids, _text_of(completion))
        end = self._end_of_turn if chat else self._end_of_text
        if ending != FinishReason.LENGTH and end is not None:
            ids = [*ids, end]
        return PromptCompletion(prompt_ids, ids)

    def _completion_ids(self, prompt: str | None, prompt_ids: list[int], text: str) -> list[int]:
        """Tokens of a completion after its prompt.

        Some tokenizers treat the beginning of a text in a way of its own. So a text is tokenised together with its
        prompt; where a token would span the border, which no sampled token can, it is tokenised alone.
        """
        if prompt is not None:
            whole = self._tokenizer(prompt + text, verbose=False)["input_ids"]
            if whole[: len(prompt_ids)] == prompt_ids:
                return list(whole[len(prompt_ids) :])
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def stop_ids_of(tokenizer: Any, generation_config: dict[str, Any], config: Any) -> frozenset[int]:
    """Tokens at which an engine ends a sample of this model, by itself."""
    listed = [tokenizer.eos_token_id, generation_config.get("eos_token_id"), config.get("eos_token_id")]
    ids = {one for each in listed if each is not None for one in (each if isinstance(each, list) else [each])}
    return frozenset(ids)


def _end_of_turn(tokenizer: Any, stop_ids: frozenset[int]) -> int | None:
    """The first token after an answer, in the chat template's rendering, that ends a sample; else end-of-text."""
    answer = "answer"
    chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    end_of_text: int | None = tokenizer.eos_token_id
    try:
        rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    except Exception:  # noqa: BLE001 -- templates raise anything; the data's own chats are rendered, or refused, later
        return end_of_text
    after = tokenizer(rendered[rendered.rfind(answer) + len(answer) :], add_special_tokens=False)["input_ids"]
    return next((one for one in after if one in stop_ids), end_of_text)


def _text_of(completion: str | Sequence[dict[str, Any]]) -> str:
    """Raises TrainingError: neither a text nor one answer."""
    if isinstance(completion, str):
        return completion
    try:
        (answer,) = completion
        if answer["role"] == "assistant" and isinstance(answer["content"], str):
            return answer["content"]
    except (ValueError, KeyError, TypeError):
        pass
    raise TrainingError("its completion is neither a text nor one message of the assistant")

"""Prompts as the policy reads them: chat template, tokens, vocabulary; in a thread of its own, off the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bon_server.core.errors import FieldViolation, InvalidRequest, UnsupportedOption
from bon_server.core.types import EncodedPrompt, Message, Prompt
from bon_server.models.tokenizer import longest_token_chars


class PromptEncoder:
    """Tokenises prompts for one policy.

    A text gets the special tokens that the model's tokenizer puts around any text (for many models a beginning-of-text
    token). A chat is rendered with the chat template, including the marker that opens the assistant's turn, and gets no
    further special tokens. Token ids are taken as they are.
    """

    def __init__(self, tokenizer: Any, vocabulary_size: int, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._longest_chars = max_model_len * longest_token_chars(tokenizer)
        self._max_model_len = max_model_len
        # One thread: the tokenizers of transformers must not be used by two at a time.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenize")

    async def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Raises `InvalidRequest` or `UnsupportedOption` for what cannot be a prompt here."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.encode_now, prompt)

    def close(self) -> None:
        """Lets the thread end, once it has encoded what waits for it: another engine may be about to sample that."""
        self._thread.shutdown(wait=False)

    def encode_now(self, prompt: Prompt) -> EncodedPrompt:
        """`encode` on the calling thread."""
        if prompt.token_ids is not None:
            return self._encode_ids(prompt.token_ids)
        if prompt.messages is not None:
            return self._encode_text("chat.messages", self._render(prompt.messages), special_tokens=False)
        return self._encode_text("text", prompt.text or "", special_tokens=True)

    def _encode_ids(self, token_ids: tuple[int, ...]) -> EncodedPrompt:
        if not token_ids:
            raise invalid("tokens.ids", "no ids were given, at least 1 is needed")
        if len(token_ids) > self._max_model_len:
            raise invalid("tokens.ids", f"{len(token_ids)} ids; the policy's context is {self._max_model_len} tokens")
        for place, token_id in enumerate(token_ids):
            if not 0 <= token_id < self._vocabulary_size:
                raise invalid(f"tokens.ids[{place}]", f"{token_id}; allowed are 0 to {self._vocabulary_size - 1}")
        return EncodedPrompt(token_ids, self._tokenizer.decode(list(token_ids)))

    def _render(self, messages: tuple[Message, ...]) -> str:
        if not self._tokenizer.chat_template:
            raise UnsupportedOption("chat: this policy has no chat template; send text or tokens")
        self._refuse_long("chat.messages", sum(len(message.content) for message in messages))
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, tokenize=False
            )
        except Exception as error:
            roles = ", ".join(message.role for message in messages[:8])
            dots = ", …" if len(messages) > 8 else ""
            raise invalid("chat.messages", f"the policy's chat template refuses the roles {roles}{dots}") from error
        return rendered

    def _encode_text(self, field: str, text: str, special_tokens: bool) -> EncodedPrompt:
        self._refuse_long(field, len(text))
        try:
            # Cut one token beyond the context: handing a million of them to Python would hold up the event loop.
            ids = self._tokenizer(
                text,
                add_special_tokens=special_tokens,
                truncation=True,
                max_length=self._max_model_len + 1,
                verbose=False,
            )["input_ids"]
        except (UnicodeEncodeError, TypeError) as error:  # a lone surrogate: a str, but no Unicode text
            raise invalid(field, "it is not valid Unicode text") from error
        if not text or not ids:
            raise invalid(field, "it is empty")
        if len(ids) > self._max_model_len:
            raise invalid(field, f"it is longer than the policy's context of {self._max_model_len} tokens")
        return EncodedPrompt(tuple(ids), text)

    def _refuse_long(self, field: str, chars: int) -> None:
        """Refuses what cannot fit whatever its tokens are, before spending seconds on tokenising it."""
        if chars > self._longest_chars:
            raise invalid(field, f"{chars} characters do not fit the policy's context of {self._max_model_len} tokens")


def invalid(field: str, problem: str) -> InvalidRequest:
    """An `InvalidRequest` about one field."""
    return InvalidRequest(FieldViolation(field, problem))

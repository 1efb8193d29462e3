"""Prompts become tokens, or are refused with the field named and nothing of their content told."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from bon_server.core.errors import InvalidRequest, UnsupportedOption
from bon_server.core.types import Message, Prompt
from bon_server.models.policy.prompts import PromptEncoder
from tests.tiny_models import byte_tokenizer

SECRET = "what nobody else may read"


def encoder(max_model_len: int = 2048, **options: Any) -> PromptEncoder:
    return PromptEncoder(byte_tokenizer(**options), vocabulary_size=259, max_model_len=max_model_len)


def refusal(prompt: Prompt, **options: Any) -> tuple[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        encoder(**options).encode_now(prompt)
    (violation,) = caught.value.violations
    assert SECRET not in str(caught.value)
    return violation.field, violation.problem


def test_a_chat_opens_the_turn_of_the_assistant() -> None:
    encoded = encoder().encode_now(Prompt(messages=(Message("system", "Brief."), Message("user", "1+1?"))))
    assert encoded.text == (
        "<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert encoded.token_ids.count(1) == 3


@pytest.mark.parametrize("text", ["a\x00b", "שלום עולם", "👩‍👩‍👧 é é", "\r\n\t ", "\ufeff", "�"])
def test_any_unicode_survives(text: str) -> None:
    encoded = encoder().encode_now(Prompt(text=text))
    assert encoded.text == text
    assert encoder().encode_now(Prompt(token_ids=encoded.token_ids)).text == text
    assert text in encoder().encode_now(Prompt(messages=(Message("user", text),))).text


def test_a_text_gets_the_special_tokens_of_its_tokenizer() -> None:
    from tokenizers import processors

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    begins = PromptEncoder(tokenizer, 259, 2048)
    assert begins.encode_now(Prompt(text="a")).token_ids[0] == 1
    assert begins.encode_now(Prompt(messages=(Message("user", "a"),))).token_ids[:2].count(1) == 1


@pytest.mark.parametrize("token_ids", [(259,), (5, -1), (2**32 - 1,), (2**64,)])
def test_tokens_outside_the_vocabulary(token_ids: tuple[int, ...]) -> None:
    field, problem = refusal(Prompt(token_ids=token_ids))
    assert field == f"tokens.ids[{len(token_ids) - 1}]"
    assert problem == f"{token_ids[-1]}; allowed are 0 to 258"


def test_no_tokens_and_too_many() -> None:
    assert refusal(Prompt(token_ids=())) == ("tokens.ids", "no ids were given, at least 1 is needed")
    assert refusal(Prompt(token_ids=(5,) * 2049))[0] == "tokens.ids"


def test_empty_text() -> None:
    assert refusal(Prompt(text="")) == ("text", "it is empty")


def test_text_that_is_no_unicode() -> None:
    assert refusal(Prompt(text=SECRET + "\ud800"))[0] == "text"
    assert refusal(Prompt(messages=(Message("user", SECRET + "\udc00"),)))[0] == "chat.messages"


def test_a_template_that_refuses_tells_roles_and_no_content() -> None:
    field, problem = refusal(Prompt(messages=(Message("user", "Hi"), Message("system", SECRET))))
    assert field == "chat.messages"
    assert problem.endswith("user, system")


@pytest.mark.parametrize("template", ["{{ messages[7].content }}", "{{ messages + 1 }}", "{% for %}", "{{ 1 / 0 }}"])
def test_a_template_that_is_broken(template: str) -> None:
    assert refusal(Prompt(messages=(Message("user", SECRET),)), chat_template=template)[0] == "chat.messages"


def test_a_chat_for_a_policy_without_a_template() -> None:
    with pytest.raises(UnsupportedOption, match="chat template"):
        encoder(chat_template=None).encode_now(Prompt(messages=(Message("user", "a"),)))


@pytest.mark.parametrize("chat", [False, True])
def test_what_cannot_fit_is_refused_before_it_is_tokenised(chat: bool) -> None:
    text = SECRET * (4_000_000 // len(SECRET))
    began = time.monotonic()
    field, problem = refusal(Prompt(messages=(Message("user", text),)) if chat else Prompt(text=text))
    assert time.monotonic() - began < 0.5
    assert field == ("chat.messages" if chat else "text")
    assert "2048 tokens" in problem


def test_what_is_just_too_long() -> None:
    """The longest token of this vocabulary, `<|endoftext|>`, stands for 13 characters."""
    assert len(encoder(max_model_len=10).encode_now(Prompt(text="<|endoftext|>" * 10)).token_ids) == 10
    assert len(encoder(max_model_len=10).encode_now(Prompt(text="a" * 10)).token_ids) == 10
    for length in (11, 130, 131):
        assert refusal(Prompt(text="a" * length), max_model_len=10)[0] == "text"


async def test_tokenising_does_not_hold_up_the_event_loop() -> None:
    slow = encoder(max_model_len=20_000)
    encoding = asyncio.ensure_future(slow.encode(Prompt(text=SECRET * 10_000)))
    longest_s, last = 0.0, time.monotonic()
    while not encoding.done():
        await asyncio.sleep(0.001)
        now = time.monotonic()
        longest_s, last = max(longest_s, now - last), now
    assert isinstance(encoding.exception(), InvalidRequest)
    assert longest_s < 0.5
    slow.close()

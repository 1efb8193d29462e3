"""What the reward model is given to read."""

from __future__ import annotations

from bon_server.core.types import Message, Prompt
from bon_server.models.reward.pairs import PairTokenizer, prompt_text
from tests.tiny_models import byte_tokenizer

CHAT = Prompt(messages=(Message("system", "Be brief."), Message("user", "1+1?")))


def test_prompts_as_one_text() -> None:
    assert prompt_text(Prompt(text="Once")) == "Once"
    assert prompt_text(Prompt(messages=(Message("user", "1+1?"),))) == "1+1?"
    assert prompt_text(Prompt(messages=(Message("assistant", "Hi"),))) == "assistant: Hi"
    assert prompt_text(CHAT) == "system: Be brief.\nuser: 1+1?"


def test_a_decoder_reads_the_chat_with_the_completion_as_its_last_turn() -> None:
    tokenizer = byte_tokenizer()
    pair = PairTokenizer(tokenizer, decoder=True)(CHAT, "2")
    assert tokenizer.decode(pair.ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n"
        "<|im_start|>assistant\n2<|im_end|>\n"
    )


def test_a_decoder_reads_a_text_continued() -> None:
    tokenizer = byte_tokenizer()
    pair = PairTokenizer(tokenizer, decoder=True)(Prompt(text="Once upon"), " a time")
    assert tokenizer.decode(pair.ids) == "Once upon a time"

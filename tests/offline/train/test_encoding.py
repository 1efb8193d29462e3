"""Rows become the tokens that the server has: its prompts, the sampled completions, and an end where there was one."""

from __future__ import annotations

from pathlib import Path

import pytest

from bon_server.core.errors import ConfigError, TrainingError
from bon_server.core.types import Message, Prompt
from bon_server.models.policy.prompts import PromptEncoder
from bon_server.models.tokenizer import load_tokenizer
from bon_server.models.weights import find_model
from bon_server.offline.train.encoding import Encoder, stop_ids_of
from tests import tiny_models
from tests.offline.train.sets import END, chat_ids, encoder_of, text_ids

QUESTION = [{"role": "user", "content": "What is 3?"}]
ANSWER = [{"role": "assistant", "content": "it is 3"}]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_policy(tmp_path_factory.mktemp("policy"))


def test_a_chat_is_the_servers_prompt_and_the_answer_with_its_end(policy: Path) -> None:
    encoder = encoder_of(policy)
    said = encoder.said(QUESTION, ANSWER, "stop")
    assert said is not None
    server = PromptEncoder(load_tokenizer(policy), 259, tiny_models.CONTEXT_TOKENS)
    assert said.prompt_ids == list(server.encode_now(Prompt(messages=(Message("user", "What is 3?"),))).token_ids)
    assert said.prompt_ids == chat_ids("What is 3?")
    assert said.completion_ids == [*text_ids("it is 3"), END], "and not the newline that the template puts after it"
    assert said.labels == [-100] * len(said.prompt_ids) + said.completion_ids


def test_what_was_cut_gets_no_end_and_what_nobody_knows_does(policy: Path) -> None:
    encoder = encoder_of(policy)
    ended, cut, unknown = (encoder.said(QUESTION, ANSWER, ending) for ending in ("stop", "length", None))
    assert ended is not None and cut is not None and unknown is not None
    assert cut.completion_ids == ended.completion_ids[:-1]
    assert unknown == ended


def test_a_text_goes_on_where_its_prompt_ends(policy: Path) -> None:
    said = encoder_of(policy).said("Once", " upon", "stop")
    assert said is not None
    assert said.prompt_ids == text_ids("Once")
    assert said.completion_ids == [*text_ids(" upon"), END]


def test_a_token_never_spans_the_border_of_prompt_and_completion(policy: Path) -> None:
    """With a tokenizer that would merge `e` and ` u` across it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<|im_end|>": 0, "O": 1, "n": 2, "c": 3, "e": 4, "x": 5, "ex": 6}
    merging = Tokenizer(models.BPE(vocab=vocabulary, merges=[("e", "x")]))
    merging.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merging, eos_token="<|im_end|>")
    encoder = Encoder(tokenizer, find_model(str(policy)), frozenset({0}))
    said = encoder.said("Once", "x", "stop")
    assert said is not None and said.input_ids == [1, 2, 3, 4, 5, 0]


def test_the_end_is_the_token_that_the_template_ends_a_turn_with(tmp_path: Path) -> None:
    """As with models whose end of a turn is another token than their end of text."""
    template = tiny_models.CHAT_TEMPLATE.replace("<|im_end|>", "<|endoftext|>")
    policy = tiny_models.save_policy(tmp_path, chat_template=template)
    files, tokenizer = find_model(str(policy)), load_tokenizer(policy)
    stop_ids = stop_ids_of(tokenizer, {"eos_token_id": [0, 2]}, files.config)
    encoder = Encoder(tokenizer, files, stop_ids)
    chat, text = encoder.said(QUESTION, ANSWER, "stop"), encoder.said("Once", " upon", "stop")
    assert chat is not None and text is not None
    assert (chat.completion_ids[-1], text.completion_ids[-1]) == (0, 2)


def test_what_is_no_prompt_or_completion_is_refused(policy: Path, tmp_path: Path) -> None:
    encoder = encoder_of(policy)
    for completion in (ANSWER + ANSWER, QUESTION, [], [{"role": "assistant", "content": None}]):
        with pytest.raises(TrainingError, match="completion is neither a text nor one message of the assistant"):
            encoder.said(QUESTION, completion, None)
    with pytest.raises(TrainingError, match="role and content"):
        encoder.said([{"role": "user"}], ANSWER, None)
    with pytest.raises(ConfigError, match="no chat template"):
        encoder_of(tiny_models.save_policy(tmp_path, chat_template=None)).said(QUESTION, ANSWER, None)


def test_a_prompt_beyond_the_context_is_told_by_none(policy: Path) -> None:
    long = [{"role": "user", "content": "x" * tiny_models.CONTEXT_TOKENS}]
    assert encoder_of(policy).said(long, ANSWER, None) is None

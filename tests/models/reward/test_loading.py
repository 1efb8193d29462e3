"""Reward models that must not start, each with one sentence saying why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bon_server.config.settings import RewardConfig
from bon_server.core.errors import StartupError
from bon_server.models.reward.classifier import Classifier, is_decoder
from bon_server.models.reward.transformers import TransformersReward
from tests import tiny_models


def refusal(directory: Path, config: RewardConfig | None = None) -> str:
    with pytest.raises(StartupError) as caught:
        Classifier.load(str(directory), config or RewardConfig())
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_more_than_one_label(tmp_path: Path) -> None:
    assert "2 labels" in refusal(tiny_models.save_encoder_reward(tmp_path, num_labels=2))


def test_a_language_model_has_no_reward_head(tmp_path: Path) -> None:
    LlamaForCausalLM(tiny_models.llama_config(num_labels=1)).save_pretrained(tmp_path)
    tiny_models.byte_tokenizer().save_pretrained(tmp_path)
    assert "score.weight" in refusal(tmp_path)


def test_no_chat_template(tmp_path: Path) -> None:
    tiny_models.save_decoder_reward(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    assert "chat template" in refusal(tmp_path)


def test_no_tokenizer(tmp_path: Path) -> None:
    tiny_models.save_encoder_reward(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert "tokenizer" in refusal(tmp_path)


def test_a_kind_of_model_that_nobody_knows(tmp_path: Path) -> None:
    tiny_models.save_encoder_reward(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "nobody-knows", "num_labels": 1}')
    assert "cannot be loaded" in refusal(tmp_path)


@pytest.mark.parametrize(("setting", "value"), [("dtype", "int4"), ("device", "nonsense")])
def test_settings_out_of_range(setting: str, value: str, encoder: Path) -> None:
    assert value in refusal(encoder, RewardConfig(**{setting: value}))  # type: ignore[arg-type]


async def test_starting_raises_the_same(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="no such directory"):
        await TransformersReward.start(str(tmp_path / "absent"), "test", RewardConfig())


def test_half_precision_is_what_was_asked_for(encoder: Path) -> None:
    assert Classifier.load(str(encoder), RewardConfig(dtype="bfloat16")).facts["dtype"] == "bfloat16"


def test_what_the_banner_says(decoder: Path) -> None:
    facts = Classifier.load(str(decoder), RewardConfig()).facts
    assert (facts["dtype"], facts["kind"], facts["max_model_len"]) == ("float32", "decoder", 2048)


def test_positions_that_begin_after_the_padding_index(tmp_path: Path) -> None:
    """RoBERTa's table of 130 positions serves 128 tokens."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    tiny_models.save_encoder_reward(tmp_path)
    config = RobertaConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=130,
        type_vocab_size=2,
        pad_token_id=1,
        num_labels=1,
    )
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    assert Classifier.load(str(tmp_path), RewardConfig()).max_model_len == 128


def test_kinds_of_models() -> None:
    from transformers import BertConfig, DebertaV2Config, ModernBertConfig, Qwen2Config, RobertaConfig

    assert all(is_decoder(kind()) for kind in (LlamaConfig, Qwen2Config))
    assert not any(is_decoder(kind()) for kind in (BertConfig, RobertaConfig, ModernBertConfig, DebertaV2Config))


def test_weights_are_not_trained_any_further(encoder: Path) -> None:
    model = Classifier.load(str(encoder), RewardConfig())._model
    assert not model.training
    assert model.dtype is torch.float32

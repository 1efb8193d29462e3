"""Models that `vllm:` does not take, each with one sentence saying why, before an engine is started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, RobertaConfig, RobertaForSequenceClassification

from bon_server.config.settings import RewardConfig
from bon_server.core.errors import StartupError
from bon_server.models.reward.pooling import PoolingModel, look_at
from bon_server.models.weights import find_model
from tests import tiny_models


def looked_at(directory: Path, config: RewardConfig | None = None) -> PoolingModel:
    return look_at(find_model(str(directory)), config or RewardConfig())


def refusal(directory: Path) -> str:
    with pytest.raises(StartupError) as caught:
        looked_at(directory)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def changed(directory: Path, tmp_path: Path, **changes: Any) -> Path:
    """A copy with another config.json."""
    copy = Path(shutil.copytree(directory, tmp_path / "changed"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    return copy


def test_what_is_taken(decoder: Path, encoder: Path) -> None:
    assert (looked_at(decoder).decoder, looked_at(decoder).max_model_len) == (True, 2048)
    assert (looked_at(encoder).decoder, looked_at(encoder).max_model_len) == (False, 128)
    assert looked_at(decoder, RewardConfig(max_model_len=100)).max_model_len == 100
    assert looked_at(decoder, RewardConfig(max_model_len=9999)).max_model_len == 2048


def test_positions_that_begin_after_the_padding_index(tmp_path: Path) -> None:
    tiny_models.save_encoder_reward(tmp_path, max_model_len=1000)
    sizes: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = RobertaConfig(**sizes, intermediate_size=64, max_position_embeddings=130, pad_token_id=1, num_labels=1)
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    assert looked_at(tmp_path).max_model_len == 128


def test_more_than_one_label(tmp_path: Path) -> None:
    assert "2 labels" in refusal(tiny_models.save_encoder_reward(tmp_path, num_labels=2))


def test_a_language_model_has_no_reward_head(tmp_path: Path) -> None:
    LlamaForCausalLM(tiny_models.llama_config(num_labels=1)).save_pretrained(tmp_path / "policy")
    tiny_models.byte_tokenizer().save_pretrained(tmp_path / "policy")
    assert "not LlamaForCausalLM" in refusal(tmp_path / "policy")
    renamed = changed(tmp_path / "policy", tmp_path, architectures=["LlamaForSequenceClassification"])
    assert "score.weight" in refusal(renamed)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["DebertaV2ForSequenceClassification"]}, "Llama, .*, not DebertaV2For"),
        ({"architectures": None}, "not none"),
        ({"classifier_from_token": ["yes", "no"]}, "classifier_from_token"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised"),
        ({"model_type": "nobody-knows"}, "config.json cannot be used"),
        ({"intermediate_size": 96}, "has the shape"),
    ],
)
def test_what_is_not_taken(changes: dict[str, Any], said: str, decoder: Path, tmp_path: Path) -> None:
    directory = changed(decoder, tmp_path, **changes)
    with pytest.raises(StartupError, match=said):
        looked_at(directory)


def test_no_chat_template(decoder: Path, tmp_path: Path) -> None:
    copy = changed(decoder, tmp_path)
    (copy / "chat_template.jinja").unlink()
    assert "chat template" in refusal(copy)

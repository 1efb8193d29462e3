"""The trained part, saved and merged, is the model that was trained; and it stays small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from bon_server.demo.reward_model import TRAINED_PART
from bon_server.demo.trained_part import make_trainable, merge_trained, save_trained

TINY = BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=1
)


def _model(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(TINY).eval()


def test_saved_and_merged_scores_the_same(tmp_path: Path) -> None:
    trained, plain = _model(), _model()
    ids = torch.randint(50, (4, 9))
    before = plain(ids).logits
    make_trainable(trained, rank=4, scale=0.5, token_ids=[7, 3, 11])
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    save_trained(trained, tmp_path / "part.safetensors")
    merge_trained(plain, tmp_path / "part.safetensors")
    assert (plain(ids).logits - before).abs().max() > 1e-2
    assert torch.allclose(plain(ids).logits, trained(ids).logits, atol=1e-3)  # the part is kept in float16


def test_untrained_changes_nothing(tmp_path: Path) -> None:
    trained, plain = _model(), _model()
    make_trainable(trained, rank=4, scale=0.5, token_ids=[3])
    ids = torch.randint(50, (4, 9))
    assert torch.allclose(trained(ids).logits, plain(ids).logits, atol=1e-6)


def test_only_the_named_rows_are_trained() -> None:
    model = _model()
    make_trainable(model, rank=4, scale=0.5, token_ids=[7, 3])
    table = model.bert.embeddings.word_embeddings
    assert table.parametrizations["weight"][0].values.shape == (2, 16)
    assert not table.parametrizations["weight"].original.requires_grad


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    trained = _model()
    make_trainable(trained, rank=4, scale=0.5, token_ids=[3])
    save_trained(trained, tmp_path / "part.safetensors")
    narrow = BertForSequenceClassification(BertConfig(**{**TINY.to_dict(), "num_hidden_layers": 1}))
    with pytest.raises(KeyError):
        merge_trained(narrow, tmp_path / "part.safetensors")


def test_committed_part_is_small() -> None:
    assert TRAINED_PART.stat().st_size <= 6_000_000

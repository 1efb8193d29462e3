"""The adapter, saved and merged, is the model that was trained; branches are scored as they would be alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM

from bon_server.demo import reward_model
from bon_server.demo.reward_model import ADAPTER, build_reward, load_backbone, save_adapter
from bon_server.demo.train_reward import LINEARS, branch_rewards
from tests import tiny_models

BATCH = [
    ("What is 3 + 4?", ["7", "It is seven.", "", "3 + 4 = 8"]),
    ("What is 12 - 5, and why?", ["7", "because"]),
]


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny policy of three layers, of which the reward model takes two.

    One would not do: the last token's vector is zero, being the padding token's, and so would be its query. Queries are
    made small: with wide ones attention is all on one token, and neither a wrong position nor a wrong mask would show.
    """
    monkeypatch.setattr(reward_model, "LAYERS", 2)
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_models.llama_config(num_hidden_layers=3))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(0.2)
    model.save_pretrained(tmp_path / "policy")
    tiny_models.byte_tokenizer().save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def trained(policy: Path, scale: float = 0.05) -> tuple[PeftModel, Any]:
    """An adapter as training may leave it, and its tokenizer."""
    torch.manual_seed(0)
    backbone, tokenizer = load_backbone(policy)
    lora = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=LINEARS)
    model = get_peft_model(backbone, lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += scale * torch.randn_like(parameter)
    return model.eval(), tokenizer


def conversations() -> list[list[dict[str, str]]]:
    """Every question of the batch with each of its completions."""
    return [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        for prompt, completions in BATCH
        for completion in completions
    ]


def rewards_one_by_one(directory: Path) -> list[float]:
    """Each conversation in a forward pass of its own, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    found = []
    for conversation in conversations():
        inputs = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            found.append(float(model(**inputs).logits[0, 0]))
    return found


def test_branches_have_the_rewards_of_the_saved_and_merged_model(policy: Path, tmp_path: Path) -> None:
    model, tokenizer = trained(policy)
    with torch.inference_mode():
        together = torch.cat(branch_rewards(model.get_base_model(), tokenizer, BATCH)).tolist()
    save_adapter(model, tmp_path / "adapter")
    apart = rewards_one_by_one(build_reward(tmp_path / "reward", policy, tmp_path / "adapter"))
    assert together == pytest.approx(apart, rel=5e-3, abs=5e-3), "the adapter is kept in float16"
    assert len({round(reward, 2) for reward in apart}) > 4


def test_gradients_are_those_of_the_conversations_one_by_one(policy: Path) -> None:
    model, tokenizer = trained(policy)
    torch.cat(branch_rewards(model.get_base_model(), tokenizer, BATCH)).sum().backward()  # type: ignore[no-untyped-call]
    adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
    together = [parameter.grad.clone() for parameter in adapter if parameter.grad is not None]
    model.zero_grad()
    for conversation in conversations():
        inputs = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=True)
        model(**inputs).logits.sum().backward()
    assert len(together) == len(adapter)
    for parameter, gradient in zip(adapter, together, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-4)
    assert all(bool(gradient.abs().max() > 0) for gradient in together)


def test_another_adapter_makes_another_model(policy: Path, tmp_path: Path) -> None:
    revisions = []
    for scale in (0.1, 0.2):
        save_adapter(trained(policy, scale)[0], tmp_path / "adapter")
        reward = build_reward(tmp_path / "reward", policy, tmp_path / "adapter")
        revisions.append((reward / "model.safetensors").read_bytes())
    assert revisions[0] != revisions[1]


def test_what_is_committed_is_small_and_names_no_path() -> None:
    files = sorted(path.name for path in ADAPTER.iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    assert sum(path.stat().st_size for path in ADAPTER.iterdir()) <= 6_000_000
    assert '"/' not in (ADAPTER / "adapter_config.json").read_text(encoding="utf-8")

"""The adapter, saved and merged, is the model that was trained; branches are scored as they would be alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bon_server.demo import reward_model
from bon_server.demo.branches import branch_rewards
from bon_server.demo.reward_model import ADAPTER, build_reward, load_backbone, save_adapter
from bon_server.demo.train_reward import LINEARS
from tests import tiny_models

BATCH = [
    ("What is 3 + 4?", ["7", "It is seven.", "", "3 + 4 = 8"]),
    ("What is 12 - 5, and why?", ["7", "because"]),
]


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny policy of two layers, of which the reward model takes one."""
    monkeypatch.setattr(reward_model, "LAYERS", 1)
    return tiny_models.save_policy(tmp_path / "policy")


def trained(policy: Path, scale: float = 0.1) -> tuple[PeftModel, Any]:
    """An adapter as training may leave it, and its tokenizer."""
    torch.manual_seed(0)
    backbone, tokenizer = load_backbone(policy)
    lora = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=LINEARS)
    model = get_peft_model(backbone, lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += scale * torch.randn_like(parameter)
    return model.eval(), tokenizer


def rewards_one_by_one(directory: Path) -> list[list[float]]:
    """Each conversation in a forward pass of its own, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    found = []
    for prompt, completions in BATCH:
        turns = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
            for completion in completions
        ]
        inputs = [tokenizer.apply_chat_template(one, return_tensors="pt", return_dict=True) for one in turns]
        with torch.inference_mode():
            found.append([float(model(**each).logits[0, 0]) for each in inputs])
    return found


def test_branches_have_the_rewards_of_the_saved_and_merged_model(policy: Path, tmp_path: Path) -> None:
    model, tokenizer = trained(policy)
    with torch.inference_mode():
        together = [each.tolist() for each in branch_rewards(model.get_base_model(), tokenizer, BATCH)]
    save_adapter(model, tmp_path / "adapter")
    apart = rewards_one_by_one(build_reward(tmp_path / "reward", policy, tmp_path / "adapter"))
    for some, others in zip(together, apart, strict=True):
        assert some == pytest.approx(others, abs=5e-3), "the adapter is kept in float16"
    assert len({round(reward, 2) for row in apart for reward in row}) > 4


def test_gradients_reach_the_adapter_through_branches(policy: Path) -> None:
    model, tokenizer = trained(policy)
    torch.cat(branch_rewards(model.get_base_model(), tokenizer, BATCH)).sum().backward()  # type: ignore[no-untyped-call]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trainable and all(p.grad is not None and p.grad.abs().max() > 0 for p in trainable)


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

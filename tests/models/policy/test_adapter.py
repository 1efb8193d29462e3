"""LoRA adapters as checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bon_server.core.errors import StartupError
from bon_server.models.policy.adapter import check_adapter, is_adapter, merge
from bon_server.models.weights import find_model
from tests import tiny_models


@pytest.fixture
def adapter(model_directory: Path, tmp_path: Path) -> Path:
    """Of the tiny policy."""
    return tiny_models.save_adapter(tmp_path / "adapter", model_directory)


def test_merged_it_computes_what_both_do_together(model_directory: Path, adapter: Path, tmp_path: Path) -> None:
    assert is_adapter(adapter) and not is_adapter(model_directory)
    check_adapter(adapter, find_model(str(model_directory)), str(model_directory))
    out = tmp_path / "merged"
    merge(model_directory, adapter, out)
    ids = torch.tensor([[5, 6, 7, 8]])
    base = AutoModelForCausalLM.from_pretrained(model_directory)
    with torch.inference_mode():
        plain = base(ids).logits
        together = PeftModel.from_pretrained(base, str(adapter)).eval()(ids).logits
        alone = AutoModelForCausalLM.from_pretrained(out).eval()(ids).logits
    assert torch.allclose(alone, together, atol=1e-4)
    assert not torch.allclose(alone, plain, atol=1e-1)
    merge(model_directory, adapter, tmp_path / "again")
    assert find_model(str(out)).revision == find_model(str(tmp_path / "again")).revision
    assert (out / "tokenizer.json").read_bytes() == (model_directory / "tokenizer.json").read_bytes()


def test_a_copy_of_the_base_is_the_base(model_directory: Path, adapter: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model_directory, tmp_path / "copy"))
    check_adapter(adapter, find_model(str(copy)), str(copy))
    with pytest.raises(StartupError, match=rf"trained on {model_directory}, and the policy of the start is a/b"):
        check_adapter(adapter, find_model(str(tiny_models.save_policy(tmp_path / "other", weights_seed=1))), "a/b")


def change_config(adapter: Path, **changes: str) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_cannot_be_merged(model_directory: Path, adapter: Path, tmp_path: Path) -> None:
    base = find_model(str(model_directory))
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor[:1] for name, tensor in tensors.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(StartupError, match="peft cannot merge it"):
        merge(model_directory, adapter, tmp_path / "out")
    change_config(adapter, peft_type="PREFIX_TUNING")
    with pytest.raises(StartupError, match="only LORA can be merged"):
        check_adapter(adapter, base, str(model_directory))
    change_config(adapter, peft_type="LORA")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(StartupError, match="pickled"):
        check_adapter(adapter, base, str(model_directory))
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(StartupError, match="cannot be read"):
        check_adapter(adapter, base, str(model_directory))

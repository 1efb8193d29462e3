"""What may take the place of the policy in use, found out from files alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bon_server.core.errors import StartupError
from bon_server.models.policy.checkpoints import check_same_kind
from bon_server.models.tokenizer import load_tokenizer, tokenizer_digest
from bon_server.models.weights import find_model
from tests import tiny_models


@pytest.fixture
def copied(model_directory: Path, tmp_path: Path) -> Path:
    """A model directory to change."""
    return Path(shutil.copytree(model_directory, tmp_path / "model"))


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(directory: Path, **changes: torch.Tensor | None) -> None:
    """None removes one; `.` is `__` in the names."""
    path = directory / "model.safetensors"
    named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
    tensors = {name: tensor for name, tensor in (load_file(path) | named).items() if tensor is not None}
    save_file(tensors, path, metadata={"format": "pt"})


def check(serving: Path, found: Path) -> None:
    check_same_kind(find_model(str(serving)), find_model(str(found)))


def test_other_numbers_are_the_same_kind(model_directory: Path, tmp_path: Path) -> None:
    check(model_directory, tiny_models.save_policy(tmp_path / "other", weights_seed=1))


def test_what_trainers_write_differently(model_directory: Path, copied: Path) -> None:
    written = json.loads((copied / "config.json").read_text())
    for default in ("attention_bias", "rms_norm_eps", "pretraining_tp", "use_cache"):
        written.pop(default, None)
    written |= {"dtype": "bfloat16", "transformers_version": "4.0", "_name_or_path": "/x", "pad_token_id": 0}
    (copied / "config.json").write_text(json.dumps(written))
    halves = load_file(copied / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in halves.items()}, copied / "model.safetensors")
    change_weights(copied, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(16))
    check(model_directory, copied)


def test_an_older_spelling_of_the_configuration(model_directory: Path, copied: Path) -> None:
    written = json.loads((copied / "config.json").read_text())
    theta = written.pop("rope_parameters")["rope_theta"]
    (copied / "config.json").write_text(json.dumps(written | {"rope_theta": theta}))
    check(model_directory, copied)
    check(copied, model_directory)
    change_config(copied, rope_theta=theta * 2)
    with pytest.raises(StartupError, match="rope_parameters"):
        check(model_directory, copied)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "mistral"},
        {"architectures": ["MistralForCausalLM"]},
        {"num_hidden_layers": 3},
        {"max_position_embeddings": 4096},
        {"rms_norm_eps": 0.1},
        {"tie_word_embeddings": True},
        {"quantization_config": {"quant_method": "awq"}},
        {"model_type": "nobody-knows"},
    ],
)
def test_another_architecture(change: dict[str, Any], model_directory: Path, copied: Path) -> None:
    change_config(copied, **change)
    with pytest.raises(StartupError, match=r"config\.json says \w+ = .*, the policy in use has"):
        check(model_directory, copied)


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model__norm__weight": None}, "it lacks the weight model.norm.weight (1 such)"),
        ({"more": torch.ones(2)}, "it has, unlike the policy in use, the weight more (1 such)"),
        (
            {"model__norm__weight": torch.ones(32)},
            "the weight model.norm.weight has the shape [32], in the policy in use [64]",
        ),
        (
            {"model__norm__weight": torch.ones(64, dtype=torch.int8)},
            "the weight model.norm.weight has the format I8, in the policy in use F32",
        ),
    ],
)
def test_other_weights(change: dict[str, torch.Tensor | None], said: str, model_directory: Path, copied: Path) -> None:
    change_weights(copied, **change)
    with pytest.raises(StartupError) as caught:
        check(model_directory, copied)
    assert str(caught.value) == f"model {copied}: {said}"


def test_a_tied_output_layer_may_be_in_the_file_or_not(tmp_path: Path) -> None:
    tied = tiny_models.save_policy(tmp_path / "tied", tie_word_embeddings=True)
    both = Path(shutil.copytree(tied, tmp_path / "both"))
    change_weights(both, lm_head__weight=load_file(tied / "model.safetensors")["model.embed_tokens.weight"].clone())
    check(tied, both)
    check(both, tied)


def digest(tokenizer: Any, directory: Path) -> str:
    tokenizer.save_pretrained(directory)
    return tokenizer_digest(load_tokenizer(directory))


def test_the_digest_of_a_tokenizer(tmp_path: Path) -> None:
    plain = digest(tiny_models.byte_tokenizer(), tmp_path / "plain")
    used = tiny_models.byte_tokenizer()
    used("some text", truncation=True, max_length=3, padding="max_length")
    used.pad_token = "<|endoftext|>"
    assert digest(used, tmp_path / "used") == plain
    more = tiny_models.byte_tokenizer()
    more.add_tokens(["<think>"])
    ended = tiny_models.byte_tokenizer()
    ended.eos_token = "<|endoftext|>"
    for number, other in enumerate((tiny_models.byte_tokenizer("{{ messages }}"), more, ended)):
        assert digest(other, tmp_path / str(number)) != plain

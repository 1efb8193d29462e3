"""Which reward models a pooling engine of vLLM can score with, found out before an engine is started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig

from bon_server.config.settings import RewardConfig
from bon_server.core.errors import StartupError
from bon_server.models.reward.classifier import is_decoder
from bon_server.models.tokenizer import load_tokenizer
from bon_server.models.weights import ModelFiles, check_shapes, expected_shapes

DECODERS = ("Llama", "Mistral", "Qwen2", "Qwen3")
ENCODERS = ("Bert", "Roberta", "XLMRoberta")
"""Kinds that were compared with transformers, each `...ForSequenceClassification`: at most 7e-6 apart in 32 bits."""
OTHER_HEADS = ("classifier_from_token", "method")
"""With these keys in its config.json, vLLM makes the head of a model from its language model's."""
NO_LIMIT = 10**9
"""What transformers says when a tokenizer does not know a limit is above this."""


@dataclass(frozen=True, slots=True)
class PoolingModel:
    """A model that can be scored with."""

    files: ModelFiles
    tokenizer: Any
    decoder: bool
    """Whether it reads left to right and is scored at the last token; else it reads text pairs."""
    max_model_len: int
    """Longest input."""


def look_at(files: ModelFiles, config: RewardConfig) -> PoolingModel:
    """Reads configuration, tokenizer and shapes; takes no memory for weights. Raises StartupError: one sentence."""
    hf_config = _configuration(files)
    _check_kind(files)
    if hf_config.num_labels != 1:
        raise StartupError(
            f"reward model {files.id}: it has {hf_config.num_labels} labels; a reward model has exactly 1"
        )
    check_shapes(files, "SequenceClassification")
    _check_head(files)
    tokenizer, decoder = load_tokenizer(files.directory), is_decoder(hf_config)
    if decoder and not tokenizer.chat_template:
        raise StartupError(f"reward model {files.id}: its tokenizer has no chat template to render prompts with")
    return PoolingModel(files, tokenizer, decoder, _max_model_len(files, hf_config, tokenizer, config))


def _configuration(files: ModelFiles) -> Any:
    try:
        return AutoConfig.from_pretrained(files.directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever the library raises, the model is not usable
        raise StartupError(
            f"reward model {files.id}: its config.json cannot be used ({type(error).__name__})"
        ) from error


def _check_kind(files: ModelFiles) -> None:
    architectures = files.config.get("architectures") or ["none"]
    known = [f"{kind}ForSequenceClassification" for kind in (*DECODERS, *ENCODERS)]
    if len(architectures) != 1 or architectures[0] not in known:
        raise StartupError(
            f"reward model {files.id}: vllm: takes sequence classifiers of {', '.join((*DECODERS, *ENCODERS))}, not "
            f"{', '.join(map(str, architectures))}; without vllm: in front others can be used too"
        )
    other = next((key for key in OTHER_HEADS if key in files.config), None)
    if other is not None or "quantization_config" in files.config:
        what = "its weights are quantised" if other is None else f"its config.json has {other}"
        raise StartupError(f"reward model {files.id}: {what}, which vllm: is not used with here")


def _check_head(files: ModelFiles) -> None:
    """A head that is not in the weight files would be random."""
    body = ("model.", "bert.", "roberta.")
    expected = expected_shapes(files, "SequenceClassification")
    absent = sorted(name for name in expected if name not in files.shapes and not name.startswith(body))
    if absent or not expected:
        what = (
            f"weights are missing, so they would be random: {absent[0]}" if absent else "its config.json does not fit"
        )
        raise StartupError(f"reward model {files.id}: {what}")


def _max_model_len(files: ModelFiles, hf_config: Any, tokenizer: Any, config: RewardConfig) -> int:
    """The least of what the model's positions, its tokenizer and the operator allow."""
    positions = hf_config.max_position_embeddings
    if "roberta" in hf_config.model_type:
        positions -= hf_config.pad_token_id + 1  # it begins to count after the padding index
    limits = [positions, tokenizer.model_max_length, config.max_model_len or NO_LIMIT]
    return int(min(limits))

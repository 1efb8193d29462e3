"""Scores completions with a reward model directory, the plain way: one transformers forward, fp32, raw logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bon_server.demo.samples import Sampled

BATCH = 64


def score(reward: Path, sampled: Sequence[Sampled]) -> NDArray[np.float64]:
    """Returns the raw reward of every completion, (P, N): the logit for the conversation, nothing cut.

    Batches are formed by length, so that little is padded; fp32, so that they do not change a reward by more than 1e-5.
    """
    tokenizer = AutoTokenizer.from_pretrained(reward, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(
        reward, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    ).eval()
    pairs = [(one.problem.prompt, completion) for one in sampled for completion in one.completions]
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][1]))
    rewards = np.empty(len(pairs))
    for start in tqdm(range(0, len(order), BATCH), unit="batch", desc="scoring"):
        chosen = order[start : start + BATCH]
        inputs = tokenizer.apply_chat_template(
            [_conversation(*pairs[index]) for index in chosen], padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            rewards[chosen] = model(**inputs).logits[:, 0].double().numpy()
    return rewards.reshape(len(sampled), -1)


def _conversation(prompt: str, completion: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]

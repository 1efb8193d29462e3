"""KL of a tuned policy to the first one, along texts that the tuned one sampled. Runs in a process of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bon_server.core.errors import StartupError
from bon_server.estimators.kl_policy import kl_full_vocabulary
from bon_server.loop.rounds.evaluation import SampledText

POSITIONS_AT_ONCE = 32
"""Rows of a vocabulary that are held in 64 bits at a time."""


def kl_of_texts(
    tuned: str, base: str, texts: Sequence[SampledText], on_text: Callable[[int], None], in_32_bits: bool = False
) -> list[float]:
    """Nats of each text, both policies as they are sampled: at the text's temperature and top_p.

    On a CPU both are computed in 32 bits; on a GPU in the number format of their files, unless `in_32_bits`: half
    precision shifts every log-probability by about 0.1, which two nearly equal policies show as a distance. on_text:
    called with how many are done. Raises StartupError when a model cannot be loaded.
    """
    models = [_load(tuned, in_32_bits), _load(base, in_32_bits)]
    values = []
    for number, text in enumerate(texts, 1):
        values.append(_kl(models, text))
        on_text(number)
    return values


def _load(model: str, in_32_bits: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    gpu = torch.cuda.is_available()
    dtype = "auto" if gpu and not in_32_bits else torch.float32
    try:
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, trust_remote_code=False, use_safetensors=True)
    except Exception as error:  # libraries raise anything here, and all of it means the same
        raise StartupError(f"policy {model}: transformers cannot load it ({type(error).__name__})") from error
    return loaded.to("cuda" if gpu else "cpu").eval()


def _kl(models: Sequence[Any], text: SampledText) -> float:
    import torch

    ids = [*text.prompt_ids, *text.completion_ids]
    sampled = len(text.completion_ids)
    with torch.inference_mode():
        # Those of the last token come too, which predict what nobody sampled.
        logits = [_last_logits(model, ids, sampled + 1)[:-1].float() for model in models]
        total = 0.0
        for start in range(0, sampled, POSITIONS_AT_ONCE):
            tuned, base = (
                sampled_logprobs(of[start : start + POSITIONS_AT_ONCE], text.temperature, text.top_p) for of in logits
            )
            mask = np.ones((1, len(tuned)), dtype=np.bool_)
            total += float(kl_full_vocabulary(tuned[None].numpy(), base[None].numpy(), mask)[0])
    return total


def _last_logits(model: Any, ids: Sequence[int], count: int) -> Any:
    """(count, vocabulary) at the last positions. A long prompt's would be gigabytes; most models can leave them out."""
    import torch

    only = {"logits_to_keep": count} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    return model(torch.tensor([ids], device=model.device), **only).logits[0, -count:]


def sampled_logprobs(logits: Any, temperature: float, top_p: float) -> Any:
    """(t, vocabulary) log-probabilities that are sampled from, on the CPU in 64 bits, of logits (t, vocabulary).

    top_p: kept are the likeliest tokens up to the one with which their probability reaches top_p.
    """
    import torch

    logprobs = (logits.double().cpu() / temperature).log_softmax(-1)
    if top_p >= 1.0:
        return logprobs
    ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logprobs.masked_fill(dropped, -torch.inf).log_softmax(-1)

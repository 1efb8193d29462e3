"""KL(policy || base), in nats per answer, along answers that the policy sampled, at the temperature of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.arms.answers import Text
from bon_server.estimators.kl_policy import kl_full_vocabulary

Floats = NDArray[np.float64]


def kl_to_base(policy: Path | str, base: str, texts: Sequence[Text], temperature: float) -> Floats:
    """(m,) the full-vocabulary KL summed over the positions of each text; loads both models in 32 bits.

    In 32 bits, since half precision shifts every log-probability by about 0.1, which two nearly equal policies would
    show as a distance. No top-p, no top-k: what else changes the distribution would have to be applied here.
    """
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = [
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval().to(device) for model in (policy, base)
    ]
    result = np.empty(len(texts))
    with torch.inference_mode():
        for index, text in enumerate(texts):
            tuned, of_base = (_log_probabilities(model, text, temperature) for model in models)
            result[index] = kl_full_vocabulary(tuned, of_base, np.ones(tuned.shape[:2], dtype=np.bool_))[0]
    return result


def _log_probabilities(model: Any, text: Text, temperature: float) -> Floats:
    """(1, completion, vocabulary) of the next token at each position of the completion."""
    import torch

    ids = torch.tensor([[*text.prompt_ids, *text.completion_ids]], device=model.device)
    kept = len(text.completion_ids) + 1  # the last one predicts what would follow the end
    logits = model(input_ids=ids, logits_to_keep=kept).logits[:, :-1]
    scaled: Floats = (logits.double() / temperature).log_softmax(-1).cpu().numpy()
    return scaled

"""What a checkpoint's log-probabilities have to be, by another library than the one that serves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bon_server.core.errors import StartupError


def expected_logprobs(directory: Path, token_ids: tuple[int, ...]) -> Any:
    """(len(token_ids), vocabulary) float32: log-probabilities, in nats, of what comes after each prefix of token_ids.

    By transformers, in float32. Raises StartupError: it cannot load the model, or a weight is not finite.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, trust_remote_code=False, local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # libraries raise anything here, and all of it means the same
        raise StartupError(f"model {directory}: transformers cannot load it ({type(error).__name__})") from error
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise StartupError(f"model {directory}: the weight {name} has values that are not finite")
    with torch.inference_mode():
        logits = model.eval()(torch.tensor([token_ids])).logits[0]
    return logits.log_softmax(-1).numpy()

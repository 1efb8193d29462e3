"""Weights against the configuration they come with.

vLLM cuts a tensor that is larger than the configuration says to size (as it does to split it over GPUs) and serves
nonsense; so what disagrees is refused before it starts.
"""

from __future__ import annotations

from bon_server.errors import StartupError
from bon_server.weights import ModelFiles


def check_shapes(files: ModelFiles) -> None:
    """Compares the tensors that both sides know by the same name; others are left to vLLM, as are quantised models.

    Takes no memory for weights. Raises StartupError.
    """
    if "quantization_config" in files.config:
        return
    for name, expected in _expected_shapes(files).items():
        found = files.shapes.get(name, expected)
        if found != expected:
            raise StartupError(
                f"model {files.directory}: the weight {name} has the shape {list(found)}, "
                f"but by config.json it has {list(expected)}"
            )


def _expected_shapes(files: ModelFiles) -> dict[str, tuple[int, ...]]:
    """By transformers, which does not know all kinds of models that vLLM does: then there is nothing to compare."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(files.directory, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, ImportError, AttributeError, TypeError, RuntimeError):
        return {}
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

"""Weights against the configuration they come with.

vLLM cuts a tensor that is larger than the configuration says to size (as it does to split it over GPUs) and serves
nonsense; so what disagrees is refused before it starts.
"""

from __future__ import annotations

from bon_server.errors import StartupError
from bon_server.weights import ModelFiles


def check_shapes(files: ModelFiles, head: str = "CausalLM") -> None:
    """Compares the tensors that both sides know by the same name; others are left to vLLM, as are quantised models.

    Takes no memory for weights. Raises StartupError.
    """
    if "quantization_config" in files.config:
        return
    for name, expected in expected_shapes(files, head).items():
        found = files.shapes.get(name, expected)
        if found != expected:
            raise StartupError(
                f"model {files.directory}: the weight {name} has the shape {list(found)}, "
                f"but by config.json it has {list(expected)}"
            )


def expected_shapes(files: ModelFiles, head: str) -> dict[str, tuple[int, ...]]:
    """Of the weights by name, from config.json. head: `CausalLM` or `SequenceClassification`.

    By transformers, which does not know all kinds of models that vLLM does: then there is nothing to compare.
    """
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            files.directory, trust_remote_code=False, local_files_only=True
        )
        with torch.device("meta"):
            model = getattr(transformers, f"AutoModelFor{head}").from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, ImportError, AttributeError, TypeError, RuntimeError):
        return {}
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}

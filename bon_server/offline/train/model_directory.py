"""The tuned policy as a model directory: weights in the base's number format, everything else as the base has it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from bon_server.core.errors import TrainingError
from bon_server.models.policy.adapter import CONFIG as ADAPTER_CONFIG
from bon_server.models.policy.adapter import WEIGHTS as ADAPTER_WEIGHTS
from bon_server.models.policy.adapter import merge
from bon_server.models.weights import HUB_FILES, ModelFiles

ADAPTER_NAME = "adapter"
"""Folder of the low-rank updates by themselves, in the model directory."""
_FORMATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def write_model(new: Path, base: ModelFiles, base_spec: str, checkpoint: Path, lora: bool) -> None:
    """Writes the model that a checkpoint has trained to `new`, which must not be there.

    base_spec: what the adapter names as its base, a directory or hub id. Raises TrainingError: weights that are not
    finite.
    """
    _check_finite(checkpoint / (ADAPTER_WEIGHTS if lora else "model.safetensors"))
    if lora:
        adapter = new.with_name(ADAPTER_NAME)
        _write_adapter(adapter, checkpoint, base_spec)
        merge(base.directory, adapter, new)
        shutil.move(adapter, new / ADAPTER_NAME)
    else:
        _convert(checkpoint, new, base)


def _write_adapter(adapter: Path, checkpoint: Path, base_spec: str) -> None:
    shutil.rmtree(adapter, ignore_errors=True)
    adapter.mkdir()
    shutil.copy(checkpoint / ADAPTER_WEIGHTS, adapter)
    config: dict[str, Any] = json.loads((checkpoint / ADAPTER_CONFIG).read_bytes())
    config |= {"base_model_name_or_path": base_spec, "target_modules": sorted(config["target_modules"])}
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _convert(checkpoint: Path, new: Path, base: ModelFiles) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    (most_common, _), *_ = Counter(base.formats.values()).most_common(1)
    dtype = getattr(torch, _FORMATS.get(most_common, "bfloat16"))
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=dtype, trust_remote_code=False, local_files_only=True, use_safetensors=True
    )
    model.save_pretrained(new)
    for path in {path for pattern in HUB_FILES for path in base.directory.glob(pattern)}:
        if "safetensors" not in path.name:
            shutil.copy(path, new)


def _check_finite(weights: Path) -> None:
    import torch
    from safetensors import safe_open

    files = [weights] if weights.exists() else sorted(weights.parent.glob("model-*.safetensors"))
    for path in files:
        with safe_open(path, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 -- it is no dictionary
                if not bool(torch.isfinite(tensors.get_tensor(name)).all()):
                    raise TrainingError(
                        f"the training diverged: the weight {name} has values that are not finite; try a lower"
                        " learning rate"
                    )

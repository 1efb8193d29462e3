"""Whether a checkpoint is of the same kind as the policy in use, so that one can take the other's place.

Limits, stored prompts and the caller's idea of the model stay what they were: only the numbers in the weights differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bon_server.errors import StartupError
from bon_server.weights import ModelFiles

NOT_THE_ARCHITECTURE = {
    "_name_or_path",
    "bos_token_id",  # trainers copy the tokenizer's here
    "eos_token_id",
    "pad_token_id",
    "dtype",  # the engine keeps the one it has
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Keys of `config.json` that may differ."""
NOT_WEIGHTS = ("rotary_emb.inv_freq",)
"""Endings of names of what some files carry and every engine computes for itself."""
FLOATS = {"F64", "F32", "F16", "BF16"}
"""Formats of safetensors that the engine converts into its own."""


def check_same_kind(serving: ModelFiles, found: ModelFiles) -> None:
    """Compares configuration, and names, shapes and formats of the weights. Raises StartupError at a difference."""
    ours, theirs = _architecture(serving.config), _architecture(found.config)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise StartupError(
                f"model {found.directory}: config.json says {key} = {_short(theirs.get(key))}, "
                f"the policy in use has {_short(ours.get(key))}"
            )
    _check_tensors(serving, found)


def _check_tensors(serving: ModelFiles, found: ModelFiles) -> None:
    tied = bool(_architecture(serving.config).get("tie_word_embeddings"))
    ours, theirs = _weights(serving, tied), _weights(found, tied)
    for names, what in ((ours - theirs, "lacks"), (theirs - ours, "has, unlike the policy in use,")):
        if names:
            raise StartupError(f"model {found.directory}: it {what} the weight {min(names)} ({len(names)} such)")
    for name in sorted(ours):
        if serving.shapes[name] != found.shapes[name]:
            raise StartupError(
                f"model {found.directory}: the weight {name} has the shape {list(found.shapes[name])}, "
                f"in the policy in use {list(serving.shapes[name])}"
            )
        formats = {serving.formats[name], found.formats[name]}
        if len(formats) > 1 and not formats <= FLOATS:
            raise StartupError(
                f"model {found.directory}: the weight {name} has the format {found.formats[name]}, "
                f"in the policy in use {serving.formats[name]}"
            )


def _weights(files: ModelFiles, tied: bool) -> set[str]:
    """Names that count: a tied output layer is the embedding again, and some files hold it twice."""
    return {
        name
        for name in files.shapes
        if not name.endswith(NOT_WEIGHTS) and not (tied and name.endswith("lm_head.weight"))
    }


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """As transformers reads it, which fills in defaults and knows older spellings; else as it stands there."""
    from transformers import CONFIG_MAPPING

    read = dict(config)
    if config.get("model_type") in CONFIG_MAPPING:
        read = CONFIG_MAPPING[config["model_type"]].from_dict(read).to_dict()
    return {key: value for key, value in read.items() if key not in NOT_THE_ARCHITECTURE}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"

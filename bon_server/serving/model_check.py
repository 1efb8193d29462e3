"""Whether a model could be loaded, from its small files and the heads of its weights: no weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bon_server.errors import StartupError
from bon_server.weights import ModelFiles, find_model


def check_model(model: str, revision: str | None, is_reward: bool, with_tokenizer: bool) -> str:
    """What there is, in one line. model: a directory.

    with_tokenizer: load that too, which needs transformers. Raises StartupError for what cannot be served.
    """
    files = find_model(model, revision)
    if is_reward:
        _check_labels(files)
    kind = ", ".join(files.config.get("architectures") or ["no architecture named"])
    size = f"{files.weights_bytes / (1 << 20):,.0f} MiB of weights in {len(files.shapes)} tensors"
    return f"{files.directory}: {kind}; {size}; {_tokenizer(files) if with_tokenizer else 'tokenizer not looked at'}"


def labels(config: Mapping[str, Any]) -> int:
    """How many outputs a sequence classifier of this `config.json` has, as transformers reads it."""
    names = config.get("id2label")
    return len(names) if names is not None else int(config.get("num_labels", 2))


def _check_labels(files: ModelFiles) -> None:
    if (count := labels(files.config)) != 1:
        raise StartupError(f"model {files.directory}: it has {count} labels; a reward model has exactly 1")


def _tokenizer(files: ModelFiles) -> str:
    from bon_server.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(files.directory)
    template = "with a chat template" if tokenizer.chat_template else "without a chat template, so for texts only"
    return f"tokenizer of {len(tokenizer):,} tokens {template}"

"""Tokenizers of policies and reward models: loaded from the directory, never from code that the model brings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from bon_server.core.errors import StartupError


def load_tokenizer(directory: Path) -> Any:
    """Returns the transformers tokenizer in a model directory. Raises StartupError when there is none that works."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # libraries raise anything here, and all of it means the same
        raise StartupError(f"model {directory}: its tokenizer cannot be loaded ({type(error).__name__})") from error


def longest_token_chars(tokenizer: Any) -> int:
    """Upper bound of the characters that one token stands for."""
    return max(len(token) for token in tokenizer.get_vocab())


def tokenizer_digest(tokenizer: Any) -> str:
    """Hex SHA-256 of what decides which tokens texts and chats become: vocabulary, rules, template and its tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    for passing in ("padding", "truncation"):  # set by whoever used it last
        rules.pop(passing, None)
    parts = [rules, str(tokenizer.chat_template), str(tokenizer.bos_token), str(tokenizer.eos_token)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def chat_template_hash(tokenizer: Any) -> str | None:
    """Hex SHA-256 of the chat template; None when there is none."""
    template = tokenizer.chat_template
    return None if template is None else hashlib.sha256(str(template).encode()).hexdigest()

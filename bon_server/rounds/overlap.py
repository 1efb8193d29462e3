"""Prompts that are in both files: what was trained on says nothing of what was learned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from bon_server.errors import ConfigError
from bon_server.harvest.columns import BadLine, Columns
from bon_server.harvest.lines import line_parts
from bon_server.harvest.prompts import find_prompts


def refuse_overlap(prompts: Path, held_out: Path, columns: Columns) -> None:
    """Raises `ConfigError` when held-out prompts are trained on as well. Bad lines are left to the harvest."""
    apart = set(_digests(held_out, columns))
    shared = apart.intersection(_digests(prompts, columns))
    if shared:
        raise ConfigError(
            f"held_out: {len(shared)} of {len(apart)} prompts in {held_out} are in {prompts} too; leave them out"
        )


def _digests(prompts: Path, columns: Columns) -> Iterator[bytes]:
    """16 bytes of each prompt's words; a string is a chat of one user message."""
    for line in find_prompts(prompts).lines(columns):
        with suppress(BadLine):
            prompt = line_parts(line.content, columns).get("prompt")
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            yield hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).digest()[:16]

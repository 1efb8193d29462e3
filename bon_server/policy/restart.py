"""The same policy once more, in the place of one whose engine died or hung."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from bon_server.config import PolicyConfig
from bon_server.errors import StartupError
from bon_server.policy.same_kind import check_same_kind
from bon_server.policy.vllm import VllmPolicy
from bon_server.tokenizer import load_tokenizer, tokenizer_digest
from bon_server.weights import find_model


async def restart(config: PolicyConfig, lost: VllmPolicy) -> VllmPolicy:
    """The policy of `config` in a new engine, after the process of the old one has ended; takes as long as a start.

    Raises StartupError: it cannot be loaded, or its files are no longer what they were when the server started.
    """
    await lost.end_engine()
    # A directory's revision is the digest of its weights, so these are compared.
    config = replace(config, revision=lost.ref.revision)
    await asyncio.to_thread(_check_same, config, lost)
    return await VllmPolicy.start(config)


def _check_same(config: PolicyConfig, lost: VllmPolicy) -> None:
    files = find_model(config.model, config.revision)
    check_same_kind(lost.files, files)
    if tokenizer_digest(load_tokenizer(files.directory)) != lost.tokenizer_digest:
        raise StartupError(f"model {files.directory}: its tokenizer or chat template has changed since the start")

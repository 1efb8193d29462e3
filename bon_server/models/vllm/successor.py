"""A second engine in the place of the one that serves: the same weights once more, or new ones.

`restart` starts the same policy again after its engine died or hung; `start_successor` starts one with new weights
beside the first, and tests it before it is used.

An engine is never given other weights in place. vLLM can do that, but with tied embeddings on a CPU it then computes
with the old output layer and says nothing, and a file that does not fit leaves the engine dead (0.32).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bon_server.config.settings import PolicyConfig
from bon_server.core.errors import SamplingFailed, StartupError, Unavailable
from bon_server.core.types import Sampling
from bon_server.models.memory_plan import refuse_without_gpu_room, refuse_without_room
from bon_server.models.policy.adapter import check_adapter, is_adapter, merge
from bon_server.models.policy.checkpoints import Checkpoint, check_same_kind, look_at
from bon_server.models.policy.reference import expected_logprobs
from bon_server.models.tokenizer import load_tokenizer, tokenizer_digest
from bon_server.models.vllm.policy import VllmPolicy
from bon_server.models.vllm.policy_engine import on_cpu
from bon_server.models.weights import ModelFiles, find_model
from bon_server.system.child_process import in_child_async


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


TEXT = "The capital of France is Paris. In 1969, two people walked on the Moon; 7 * 8 = 56."
"""Where the engine's log-probabilities are compared, after each of its tokens."""
LONGEST_TEST_TOKENS = 64
TOLERANCE_NATS = {"float32": 0.01, "bfloat16": 0.25, "float16": 0.1}
"""Largest mean difference of the log-probability of a token, by the engine's number format."""


async def start_successor(config: PolicyConfig, serving: VllmPolicy, directory: Path) -> VllmPolicy | None:
    """A policy with the weights of a checkpoint, in an engine of its own; None: they are those in use.

    An adapter is merged into the weights of the start (`config.model`), in a directory for temporary files.

    Raises StartupError: it cannot be loaded, is not of the same kind as the one that serves, has another tokenizer or
    chat template, does not fit into memory beside it, does not compute what it should, or was changed meanwhile.
    """
    try:
        before = await asyncio.to_thread(look_at, directory)
        if not is_adapter(directory):
            return await _start(config, serving, directory, before)
        with TemporaryDirectory(prefix="bon-merged-") as scratch:
            merged = await _merge(config, directory, Path(scratch) / directory.name)
            return await _start(config, serving, merged, before)
    except OSError as error:
        raise StartupError(f"model {directory}: it cannot be read ({type(error).__name__})") from error


async def _merge(config: PolicyConfig, adapter: Path, out: Path) -> Path:
    base = await asyncio.to_thread(find_model, config.model, config.revision)
    await asyncio.to_thread(check_adapter, adapter, base, config.model)
    await in_child_async(merge, base.directory, adapter, out)
    return out


async def _start(config: PolicyConfig, serving: VllmPolicy, directory: Path, before: Checkpoint) -> VllmPolicy | None:
    """directory: of the weights to load; before: the checkpoint they come from, as it was before it was read."""
    files = await asyncio.to_thread(find_model, str(directory))
    if files.revision == serving.ref.revision:
        return None
    token_ids = await asyncio.to_thread(_examine, config, serving, files)
    expected = await in_child_async(expected_logprobs, files.directory, token_ids)
    policy = await VllmPolicy.start(
        # As the one in use came out, so that nothing but the weights changes.
        replace(
            config,
            model=str(files.directory),
            revision=files.revision,
            dtype=serving.dtype,
            max_model_len=serving.max_model_len,
        )
    )
    try:
        await compare(policy, serving.dtype, token_ids, expected)
        if await asyncio.to_thread(look_at, before.directory) != before:
            raise StartupError(f"model {before.directory}: it was changed while it was being loaded")
    except BaseException:
        await policy.close()
        raise
    return policy


def _examine(config: PolicyConfig, serving: VllmPolicy, files: ModelFiles) -> tuple[int, ...]:
    """All that can be found out without loading weights. Returns the tokens to test with."""
    check_same_kind(serving.files, files)
    tokenizer = load_tokenizer(files.directory)
    if tokenizer_digest(tokenizer) != serving.tokenizer_digest:
        raise StartupError(
            f"model {files.directory}: its tokenizer or chat template is not that of the policy in use; a policy with "
            "another one needs a server of its own"
        )
    refuse_without_room(files, serving.dtype, serving.cpu_cache_bytes)
    if not on_cpu():
        refuse_without_gpu_room(files, config.gpu_memory_utilization)
    return tuple(tokenizer(TEXT)["input_ids"][: min(LONGEST_TEST_TOKENS, serving.max_model_len - 1)])


async def compare(policy: VllmPolicy, dtype: str, token_ids: Sequence[int], expected: Any) -> None:
    """Lets the engine continue each prefix of token_ids by its likeliest token, and compares the log-probability.

    expected: (len(token_ids), vocabulary) log-probabilities in nats. Raises StartupError where they differ by more, on
    average, than the engine's number format explains.
    """
    greedy = Sampling(temperature=0.0, max_tokens=1)
    prefixes = [token_ids[: end + 1] for end in range(len(token_ids))]
    try:
        samples = await asyncio.gather(*(policy.sample(f"test-{len(p)}", p, greedy) for p in prefixes))
    except (SamplingFailed, Unavailable) as error:
        raise StartupError("the engine started but cannot sample") from error
    differences = [
        float("nan") if sample.logprob is None else abs(sample.logprob - float(row[sample.token_ids[0]]))
        for sample, row in zip(samples, expected, strict=True)
    ]
    mean_nats = sum(differences) / len(differences)
    if not mean_nats <= TOLERANCE_NATS[dtype]:  # NaN is not below it either
        raise StartupError(
            f"the engine does not compute what the weights say: log-probabilities differ by {mean_nats:.3g} nats a "
            f"token from those of transformers, allowed are {TOLERANCE_NATS[dtype]}"
        )

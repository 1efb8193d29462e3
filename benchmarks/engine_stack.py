"""The bare engine: vLLM's AsyncLLM in this process, started as the server starts it, sampling N and nothing else.

No log-probabilities, no rewards, no log, no network: the least that N samples can cost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from benchmarks.load import Asked
from benchmarks.models import Models
from benchmarks.workload import Question, Sampling
from bon_server.config.settings import PolicyConfig
from bon_server.core.types import Message, Prompt
from bon_server.models.policy.prompts import PromptEncoder
from bon_server.models.tokenizer import load_tokenizer
from bon_server.models.weights import find_model


class EngineStack:
    """One way to sample N from a running engine."""

    def __init__(
        self,
        name: str,
        engine: Any,
        encoder: PromptEncoder,
        sampling: Sampling,
        *,
        requests: int,
        logprobs: int | None,
    ) -> None:
        """`requests` engine requests share the n candidates; `logprobs`: 0 for those of the sampled tokens, or None."""
        self.name = name
        self._engine = engine
        self._encoder = encoder
        self._sampling = sampling
        self._requests = requests
        self._logprobs = logprobs

    async def prepare(self) -> None:
        """Several stacks share this engine, and none may profit from prompts that another computed."""
        await self._engine.reset_prefix_cache()

    async def ask(self, question: Question) -> Asked:
        """Samples all candidates."""
        encoded = await self._encoder.encode(Prompt(messages=(Message("user", question.prompt),)))
        each = self._sampling.n // self._requests
        samples = (
            self._sample(encoded.token_ids, question.seed + first, each) for first in range(0, self._sampling.n, each)
        )
        return Asked(sum(await asyncio.gather(*samples)))

    async def _sample(self, token_ids: Sequence[int], seed: int, n: int) -> int:
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        parameters = SamplingParams(
            n=n,
            temperature=self._sampling.temperature,
            max_tokens=self._sampling.max_tokens,
            seed=seed,
            logprobs=self._logprobs,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        tokens = 0
        async for output in self._engine.generate(tokens_input(list(token_ids)), parameters, uuid4().hex):
            tokens += sum(len(completion.token_ids) for completion in output.outputs)
        return tokens


@asynccontextmanager
async def bare_engine(models: Models, sampling: Sampling) -> AsyncIterator[list[EngineStack]]:
    """Starts the engine; yields the ways to sample from it that compete for being the baseline, then a diagnostic."""
    from bon_server.models.vllm.policy_engine import end_engine, start_engine

    files = await asyncio.to_thread(find_model, models.policy, None)
    config = PolicyConfig(model=models.policy, dtype=models.dtype, gpu_memory_utilization=models.gpu_memory_utilization)
    engine = await start_engine(config, files)
    model = engine.vllm_config.model_config
    encoder = PromptEncoder(load_tokenizer(files.directory), model.get_vocab_size(), model.max_model_len)
    try:
        yield [
            EngineStack("engine_separate", engine, encoder, sampling, requests=sampling.n, logprobs=None),
            EngineStack("engine_n", engine, encoder, sampling, requests=1, logprobs=None),
            EngineStack("engine_separate_logprobs", engine, encoder, sampling, requests=sampling.n, logprobs=0),
        ]
    finally:
        encoder.close()
        await end_engine(engine)

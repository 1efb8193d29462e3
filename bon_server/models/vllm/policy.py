"""The policy sampled by vLLM: this file talks to the generating engine, `policy_engine` starts and ends it.

Each candidate is a vLLM request of its own, so that it can be scored as soon as it is done; the prompt they share is
computed once (prefix caching). Written against vLLM 0.32.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from msgspec import structs

from bon_server.config.settings import PolicyConfig
from bon_server.core.errors import SamplingFailed, StartupError, Unavailable, UnsupportedOption
from bon_server.core.types import (
    Completion,
    EncodedPrompt,
    FinishReason,
    LogprobKind,
    Milestone,
    PolicyRef,
    Prompt,
    Sampling,
)
from bon_server.models.policy.prompts import PromptEncoder, invalid
from bon_server.models.tokenizer import chat_template_hash, load_tokenizer, tokenizer_digest
from bon_server.models.vllm.grammar import grammar_of
from bon_server.models.vllm.grammar_gate import GrammarGate
from bon_server.models.weights import ModelFiles, find_model
from bon_server.system.telemetry import Telemetry

# First of all engine imports: it sets what vLLM reads while it is imported.
from bon_server.models.vllm.policy_engine import end_engine, on_cpu, start_engine  # isort: skip

from vllm.exceptions import VLLMClientError, VLLMError
from vllm.inputs import tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.structured_output.backend_guidance import GuidanceBackend

logger = logging.getLogger(__name__)

LOWEST_TEMPERATURE = 0.01
"""vLLM raises lower ones to this without saying so, and the log would hold a temperature that was not used."""
LOWEST_REPETITION_PENALTY = 0.01
"""Logits are divided by it: lower ones overflow to NaN."""
DEAD_RETRY_MS = 10_000
FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "abort": FinishReason.CANCELLED}


class VllmPolicy:
    """A `Policy` on one vLLM engine, which runs in a process of its own. Made by `start`."""

    def __init__(
        self,
        engine: Any,
        telemetry: Telemetry,
        files: ModelFiles,
        tokenizer: Any,
        digest: str,
        constraint_trial_ms: int,
    ) -> None:
        self._engine = engine
        self._telemetry = telemetry
        self.files = files
        self.tokenizer_digest = digest
        self._vllm_config = engine.vllm_config
        self._vocabulary_size: int = self._vllm_config.model_config.get_vocab_size()
        self._max_model_len: int = self._vllm_config.model_config.max_model_len
        self._encoder = PromptEncoder(tokenizer, self._vocabulary_size, self._max_model_len)
        can_follow = GuidanceBackend.is_tokenizer_supported(engine.get_tokenizer())
        self._gate = GrammarGate(tokenizer if can_follow else None, self._vocabulary_size, constraint_trial_ms)
        self._ref = PolicyRef(files.id, files.revision, chat_template_hash(tokenizer))
        self._closed = False

    @classmethod
    async def start(cls, config: PolicyConfig) -> VllmPolicy:
        """Loads the model and samples once to warm up; takes 15 to 40 s on a CPU and does not block the event loop.

        Raises StartupError: the model cannot be found or loaded, or does not fit.
        """
        files = await asyncio.to_thread(find_model, config.model, config.revision)
        tokenizer = await asyncio.to_thread(load_tokenizer, files.directory)
        digest = await asyncio.to_thread(tokenizer_digest, tokenizer)
        telemetry = Telemetry()
        engine = await start_engine(config, files, telemetry)
        policy = cls(engine, telemetry, files, tokenizer, digest, config.constraint_trial_ms)
        try:
            # The first request with log-probabilities is slow, or with a constraint, and must not be a caller's.
            choice = ("warm up",) if policy._gate.available else None
            await policy.sample("warm-up", [0], Sampling(temperature=1.0, max_tokens=2, top_p=0.9, choice=choice))
        except BaseException as error:
            await policy.close()
            if isinstance(error, SamplingFailed | Unavailable):
                raise StartupError(f"policy {config.model}: the engine started but cannot sample") from error
            raise
        return policy

    @property
    def ref(self) -> PolicyRef:
        """Which model this is."""
        return self._ref

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return self._max_model_len

    @property
    def slots(self) -> int:
        """Samples that run at once; more wait their turn."""
        copies = self._vllm_config.parallel_config.data_parallel_size
        return int(self._vllm_config.scheduler_config.max_num_seqs * copies)

    @property
    def dtype(self) -> str:
        """Number format of the weights in the engine: `float32`, `bfloat16` or `float16`."""
        return str(self._vllm_config.model_config.dtype).removeprefix("torch.")

    @property
    def cpu_cache_bytes(self) -> int:
        """Main memory of the attention keys and values; 0 on a GPU."""
        return int(self._vllm_config.cache_config.kv_cache_memory_bytes or 0) if on_cpu() else 0

    @property
    def healthy(self) -> bool:
        """Whether the engine's process lives; whether it makes progress, `engines` tell."""
        return self._engine is not None and not self._engine.errored

    def unfinished_requests(self) -> int:
        """Samples that wait or run in the engine."""
        if not self.healthy:
            return 0
        return int(self._engine.output_processor.get_num_unfinished_requests())

    @property
    def facts(self) -> Mapping[str, str | int]:
        """What the start-up banner says of the policy."""
        cache = self._vllm_config.cache_config
        return {
            "device": "cpu" if on_cpu() else str(current_platform.get_device_name()),
            "dtype": self.dtype,
            "weights_bytes": self.files.weights_bytes,
            "kv_cache_tokens": int(cache.num_gpu_blocks or 0) * int(cache.block_size),
            "max_model_len": self._max_model_len,
        }

    @property
    def engines(self) -> tuple[Telemetry, ...]:
        """What the engine tells of itself."""
        return (self._telemetry,)

    async def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Tokenises off the event loop. See `PromptEncoder` for which special tokens are added."""
        return await self._encoder.encode(prompt)

    async def check(self, sampling: Sampling) -> None:
        """Refuses what this engine cannot do, and what would make it die or do something else than asked."""
        if sampling.seed is not None and on_cpu() and self._vllm_config.scheduler_config.enable_chunked_prefill:
            raise UnsupportedOption("sampling.seed is not available for this kind of model on a CPU")
        if 0 < sampling.temperature < LOWEST_TEMPERATURE:
            raise invalid(
                "sampling.temperature", f"{sampling.temperature}; allowed are 0, or {LOWEST_TEMPERATURE} to 2"
            )
        if sampling.repetition_penalty < LOWEST_REPETITION_PENALTY:
            allowed = f"allowed are {LOWEST_REPETITION_PENALTY} to 2"
            raise invalid("sampling.repetition_penalty", f"{sampling.repetition_penalty}; {allowed}")
        for place, token_id in enumerate(sampling.stop_token_ids):
            if not 0 <= token_id < self._vocabulary_size:
                allowed = f"allowed are 0 to {self._vocabulary_size - 1}"
                raise invalid(f"sampling.stop_token_ids[{place}]", f"{token_id}; {allowed}")
        await self._gate.check(sampling)
        try:
            _engine_sampling(sampling)
        except (VLLMError, ValueError, TypeError, OverflowError) as error:
            field: str | None = getattr(error, "parameter", None)
            raise invalid(f"sampling.{field}" if field else "sampling", "the engine refuses this value") from error

    async def sample(
        self, key: str, prompt_token_ids: Sequence[int], sampling: Sampling, milestone: Milestone | None = None
    ) -> Completion:
        """One sample: see `Policy.sample`.

        `token_ids` are exactly the sampled ones, and `logprob` is the sum over all of them. `text` can be shorter than
        their decoding: it leaves out special tokens, the stop string and what was sampled after it in the same token.
        """
        if self._engine is None:
            raise Unavailable("the policy's engine was ended", DEAD_RETRY_MS)
        try:
            prompt = tokens_input(list(prompt_token_ids))
            params = _engine_sampling(sampling)
            if milestone is not None:
                params.output_kind = RequestOutputKind.DELTA
            with self._telemetry.working():
                async with aclosing(self._engine.generate(prompt, params, key)) as outputs:
                    if milestone is not None:
                        return await _in_pieces(outputs, sampling, milestone)
                    async for output in outputs:
                        return _completion(output.outputs[0], sampling)
        except EngineDeadError as error:
            raise Unavailable("the engine died", DEAD_RETRY_MS) from error
        except (VLLMError, ValueError) as error:
            if not self.healthy:
                raise Unavailable("the engine died", DEAD_RETRY_MS) from error
            kind = "refused by the engine" if isinstance(error, VLLMClientError | ValueError) else "engine error"
            logger.warning("sample failed: %s (%s)", kind, type(error.__cause__ or error).__name__)
            raise SamplingFailed(kind) from error
        raise SamplingFailed("no output")

    async def abort(self, keys: Sequence[str]) -> None:
        """Ends the samples with these keys; `sample` then returns their partial text."""
        if self.healthy:
            await self._engine.abort(list(keys))

    async def close(self) -> None:
        """Ends the engine's process, by force if it does not go within a few seconds."""
        if self._closed:
            return
        self._closed = True
        self._encoder.close()
        await self._gate.close()
        await self.end_engine()

    async def end_engine(self) -> None:
        """Ends the engine's process alone: prompts and parameters can be looked at until `close`. May be called twice.

        What is being sampled has to be stopped before, or it would wait for ever.
        """
        engine, self._engine = self._engine, None
        if engine is not None:
            await end_engine(engine)


def _engine_sampling(sampling: Sampling) -> Any:
    """Only what is listed here ever reaches the engine."""
    return SamplingParams(
        n=1,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        top_k=sampling.top_k,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        max_tokens=sampling.max_tokens,
        # The same seed to torch, whose seeds are 64 bits; but -1 would mean "none" to vLLM.
        seed=None if sampling.seed is None else sampling.seed % 2**64,
        stop=list(sampling.stop),
        stop_token_ids=list(sampling.stop_token_ids),
        structured_outputs=_constraint(sampling),
        logprobs=0,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


def _constraint(sampling: Sampling) -> Any:
    grammar = grammar_of(sampling)
    if grammar is None:
        return None
    constraint = StructuredOutputsParams(grammar=grammar)
    constraint._backend = "guidance"  # what vLLM's own check would set, see `policy_engine`
    return constraint


async def _in_pieces(outputs: AsyncGenerator[Any, None], sampling: Sampling, milestone: Milestone) -> Completion:
    """Puts the pieces of one sample together; the log-probability is a running sum already."""
    text, token_ids, told = "", (), False
    async for output in outputs:
        piece = output.outputs[0]
        text, token_ids = text + piece.text, (*token_ids, *piece.token_ids)
        if piece.finish_reason is not None:
            return structs.replace(_completion(piece, sampling), text=text, token_ids=token_ids)
        if not told and len(token_ids) >= milestone.tokens:
            told = True
            milestone.passed(text)
    raise SamplingFailed("no output")


def _completion(output: Any, sampling: Sampling) -> Completion:
    reason = FINISH_REASONS.get(output.finish_reason)
    if reason is None:
        raise SamplingFailed(f"finish reason {output.finish_reason}")
    logprob = output.cumulative_logprob
    known = logprob is not None and math.isfinite(logprob)
    # A further end-of-text token of the model comes back like a stop token of the caller's.
    stopped_by = output.stop_reason if output.stop_reason in (*sampling.stop, *sampling.stop_token_ids) else None
    return Completion(
        text=output.text,
        token_ids=tuple(output.token_ids),
        finish_reason=reason,
        stop_reason=None if stopped_by is None else str(stopped_by),
        logprob=logprob if known else None,
        logprob_kind=_logprob_kind(sampling) if known else None,
        seed=sampling.seed,
    )


def _logprob_kind(sampling: Sampling) -> LogprobKind:
    return LogprobKind.TEMPERATURE_1 if sampling.temperature == 0 else LogprobKind.SAMPLED

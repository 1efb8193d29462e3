"""The reward model on a vLLM engine of its own, in pooling mode: raw logits, prompts computed once.

This file talks to the engine, `reward_engine` starts it, `pooling` says which models it takes. Written for vLLM 0.32.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from bon_server.config.settings import RewardConfig
from bon_server.core.errors import RewardFailed, StartupError, Unavailable
from bon_server.core.types import ModelRef, Prompt, Score
from bon_server.models.reward.pairs import PairTokenizer, TokenPair, Unreadable, read_pair, scored
from bon_server.models.reward.pooling import PoolingModel, look_at
from bon_server.models.weights import find_model
from bon_server.system.telemetry import Telemetry

# First of all engine imports: it sets what vLLM reads while it is imported.
from bon_server.models.vllm.reward_engine import start_pooling_engine  # isort: skip

from vllm.exceptions import VLLMError
from vllm.inputs import tokens_input
from vllm.platforms import current_platform
from vllm.pooling_params import PoolingParams
from vllm.v1.engine.exceptions import EngineDeadError

from bon_server.models.vllm.engine import end_engine, on_cpu

logger = logging.getLogger(__name__)

DEAD_RETRY_MS = 10_000


class VllmReward:
    """A `RewardModel`: raw logits of a sequence classifier with one label, computed in 32 bits unless set otherwise.

    Each completion is an engine request of its own, so it is scored beside whatever else waits; prompts are shared in
    blocks by the engine's prefix cache. Made by `start`.
    """

    def __init__(self, engine: Any, telemetry: Telemetry, model: PoolingModel, name: str) -> None:
        self._engine = engine
        self._telemetry = telemetry
        self._model = model
        self._vllm_config = engine.vllm_config
        self._vocabulary_size: int = self._vllm_config.model_config.get_vocab_size()
        self._tokenize = PairTokenizer(model.tokenizer, model.decoder)
        # One thread: the tokenizers of transformers must not be used by two at a time.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"reward-{name}")
        self._running: set[str] = set()
        self._closed = False
        self.refs = (ModelRef(name, model.files.id, model.files.revision),)

    @classmethod
    async def start(cls, model: str, name: str, config: RewardConfig) -> VllmReward:
        """Loads a directory or hub id and scores once; takes 15 to 20 s on a CPU and does not block the event loop.

        Raises StartupError: the model cannot be found, loaded or scored with by vLLM.
        """
        files = await asyncio.to_thread(find_model, model, config.revision)
        looked_at = await asyncio.to_thread(look_at, files, config)
        telemetry = Telemetry()
        reward = cls(await start_pooling_engine(config, looked_at, name, telemetry), telemetry, looked_at, name)
        try:
            await reward._logit(TokenPair([0, 1], None))
        except BaseException as error:
            await reward.close()
            if isinstance(error, RewardFailed | Unavailable):
                raise StartupError(f"reward model {files.id}: the engine started but cannot score") from error
            raise
        return reward

    @property
    def healthy(self) -> bool:
        """Whether the engine's process lives. A hung engine still counts as healthy."""
        return not self._closed and not self._engine.errored

    @property
    def facts(self) -> Mapping[str, str | int]:
        """What the start-up banner says of the model."""
        cache = self._vllm_config.cache_config
        facts: dict[str, str | int] = {
            "engine": "vllm",
            "device": "cpu" if on_cpu() else str(current_platform.get_device_name()),
            "dtype": str(self._vllm_config.model_config.dtype).removeprefix("torch."),
            "weights_bytes": self._model.files.weights_bytes,
            "kind": "decoder" if self._model.decoder else "encoder",
            "max_model_len": self._model.max_model_len,
        }
        if self._model.decoder:
            facts["kv_cache_tokens"] = int(cache.num_gpu_blocks or 0) * int(cache.block_size)
        return facts

    @property
    def engines(self) -> tuple[Telemetry, ...]:
        """What the engine tells of itself."""
        return (self._telemetry,)

    def unfinished_requests(self) -> int:
        """Completions that wait or run in the engine."""
        return int(self._engine.output_processor.get_num_unfinished_requests()) if self.healthy else 0

    async def score(self, prompt: Prompt, completion: str, context: Mapping[str, str]) -> Score:
        """The reward of one completion; the context is not used. Cancelling it frees the engine.

        Raises Unavailable: the engine died or was closed. Raises RewardFailed: it failed at this request.
        """
        if self._closed:
            raise self._gone()
        try:
            pair = await asyncio.get_running_loop().run_in_executor(self._thread, self._read, prompt, completion)
        except Unreadable as unreadable:
            return unreadable.score
        return scored(await self._logit(pair), len(pair.ids))

    async def close(self) -> None:
        """Ends what runs, then the engine's process, by force if it does not go within a few seconds."""
        if self._closed:
            return
        alive, self._closed = self.healthy, True
        self._thread.shutdown(wait=False)
        if alive:
            await self._engine.abort(list(self._running))
        engine, self._engine = self._engine, None
        await end_engine(engine)

    def _read(self, prompt: Prompt, completion: str) -> TokenPair:
        return read_pair(self._tokenize, prompt, completion, self._model.max_model_len, self._vocabulary_size)

    async def _logit(self, pair: TokenPair) -> float:
        if self._closed:
            raise self._gone()
        key = uuid4().hex
        self._running.add(key)
        try:
            with self._telemetry.working():
                async with aclosing(self._engine.encode(tokens_input(pair.ids), _parameters(pair), key)) as outputs:
                    async for output in outputs:
                        logits = output.outputs.data
                        if logits.numel() == 1:
                            return float(logits)
                        raise self._gone()  # aborted: only `close` does that
        except EngineDeadError as error:
            raise self._gone() from error
        except (VLLMError, ValueError) as error:
            if not self.healthy:
                raise self._gone() from error
            kind = type(error.__cause__ or error).__name__
            logger.warning("scoring failed in the engine (%s)", kind)
            raise RewardFailed(f"the engine failed: {kind}") from error
        finally:
            self._running.discard(key)
        raise RewardFailed("no output")

    def _gone(self) -> Unavailable:
        return Unavailable(
            "the reward model was closed" if self._closed else "the reward model's engine died", DEAD_RETRY_MS
        )


def _parameters(pair: TokenPair) -> Any:
    """The raw logit, and for a text pair where its second text begins: vLLM knows no other token types."""
    second = None if pair.type_ids is None or 1 not in pair.type_ids else pair.type_ids.index(1)
    types = None if second is None else {"compressed_token_type_ids": second}
    return PoolingParams(task="classify", use_activation=False, extra_kwargs=types)

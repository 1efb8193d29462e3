"""What the models will take of the memory, before any is loaded: an engine that finds none left dies after minutes.

`memory_plan` adds up all models of a configuration. `refuse_without_room` and `refuse_without_gpu_room` ask whether a
second engine fits beside the one that serves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bon_server.config.settings import Config, PolicyConfig, RewardConfig
from bon_server.config.specs import is_kind, model_of, split_name
from bon_server.core.errors import StartupError
from bon_server.models.weights import ModelFiles, find_model
from bon_server.system.memory import PROCESS_BYTES, MemoryRoom, gpu_room, host_room

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


GIB = 1 << 30
CPU_CACHE_BYTES = GIB
"""Attention keys and values of an engine on a CPU, unless set."""
CONTEXT_BYTES = 3 * GIB // 10
"""What a process takes of a GPU beside its models: CUDA's context and kernels. An estimate: it differs by GPU."""
KEPT_PROMPTS_BYTES = GIB // 4
"""Attention keys and values that the transformers backend keeps of prompts."""


@dataclass(frozen=True, slots=True)
class Need:
    """What one model takes."""

    who: str
    parts: Mapping[str, int]
    """Bytes by what they are for."""

    @property
    def total_bytes(self) -> int:
        """Of all parts."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_gib(size)}" for name, size in self.parts.items())
        return f"{self.who} {_gib(self.total_bytes)} ({parts})"


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Needs against room."""

    needs: tuple[Need, ...]
    room: MemoryRoom

    @property
    def needed_bytes(self) -> int:
        """Of all models."""
        return sum(need.total_bytes for need in self.needs)

    @property
    def fits(self) -> bool:
        """Whether they can all be loaded."""
        return self.needed_bytes <= self.room.free_bytes

    def __str__(self) -> str:
        needs = "; ".join(map(str, self.needs))
        verdict = f"spare {_gib(self.room.free_bytes - self.needed_bytes)}" if self.fits else "that is too little"
        return f"{needs}; together {_gib(self.needed_bytes)}, and {_free(self.room)}: {verdict}"

    @property
    def _smaller(self) -> str:
        return "gpu_memory_utilization" if self.room.where == "GPU" else "kv_cache_memory_bytes or max_model_len"

    def check(self) -> None:
        """Raises StartupError when they cannot."""
        if not self.fits:
            raise StartupError(
                f"the models need {_gib(self.needed_bytes)} GiB of memory, and {_free(self.room)}: "
                f"{'; '.join(map(str, self.needs))}. Less is needed with a smaller {self._smaller} of either, "
                "or half precision"
            )


def memory_plan(config: Config) -> MemoryPlan | None:
    """None: there is nothing to load. Reads the heads of weight files, and fetches what is not on this disk yet.

    Raises StartupError for models that cannot be found.
    """
    if not any(is_model(spec) for spec in (config.policy.model, *map(_spec, config.reward.models))):
        return None
    gpu = gpu_room()
    if gpu is None:
        return MemoryPlan(tuple(_on_host(config)), host_room())
    return MemoryPlan(tuple(_on_gpu(config, gpu.total_bytes)), gpu)


def is_model(spec: str) -> bool:
    """Whether weights are loaded for it."""
    return bool(spec) and not is_kind(spec, "synthetic") and not is_kind(spec, "function")


def _on_host(config: Config) -> Iterator[Need]:
    from bon_server.models.dtype import dtype_for

    policy, reward = config.policy, config.reward
    if is_model(policy.model):
        weights_bytes = _weights_bytes(_files(policy), dtype_for(policy.dtype, on_cpu=True))
        yield _engine("policy", weights_bytes, policy.kv_cache_memory_bytes or CPU_CACHE_BYTES)
    for name, spec, files in _reward_models(reward):
        weights_bytes = _weights_bytes(files, reward.dtype)
        if is_kind(spec, "vllm"):
            cache_bytes = (reward.kv_cache_memory_bytes or CPU_CACHE_BYTES) if _keeps_cache(files) else 0
            yield _engine(f"reward model {name}", weights_bytes, cache_bytes)
        else:
            yield Need(f"reward model {name}", {"weights": weights_bytes, "prompts": KEPT_PROMPTS_BYTES})
    yield Need("server", {"process": PROCESS_BYTES})


def _on_gpu(config: Config, gpu_bytes: int) -> Iterator[Need]:
    """Engines take their share whatever is in it; the rest is for models in the server's own process."""
    policy, reward = config.policy, config.reward
    if is_model(policy.model):
        weights_bytes = _weights_bytes(_files(policy), policy.dtype) // policy.tensor_parallel_size
        need = _share("policy", "policy", policy, weights_bytes, gpu_bytes)
        yield need
        if policy.watch is not None:
            yield replace(need, who="policy's next weights beside it (policy.watch)")
    for name, spec, files in _reward_models(reward):
        weights_bytes = _weights_bytes(files, reward.dtype)
        if is_kind(spec, "vllm"):
            yield _share(f"reward model {name}", "reward", reward, weights_bytes, gpu_bytes)
        elif reward.device in ("auto", "cuda", "cuda:0"):
            parts = {"weights": weights_bytes, "prompts": KEPT_PROMPTS_BYTES, "process": CONTEXT_BYTES}
            yield Need(f"reward model {name}", parts)


def _engine(who: str, weights_bytes: int, cache_bytes: int) -> Need:
    parts = {"weights": weights_bytes, "key-value cache": cache_bytes, "process": PROCESS_BYTES}
    return Need(who, {name: size for name, size in parts.items() if size})


def _share(who: str, section: str, config: PolicyConfig | RewardConfig, weights_bytes: int, gpu_bytes: int) -> Need:
    """vLLM takes the whole share, and wants it free, unless a cache of a given size makes it more."""
    share = config.gpu_memory_utilization
    taken_bytes = int(share * gpu_bytes)
    if weights_bytes >= taken_bytes:
        raise StartupError(
            f"{section}.gpu_memory_utilization = {share} is {_gib(taken_bytes)} GiB of a GPU, and the weights of the "
            f"{who} alone take {_gib(weights_bytes)} GiB"
        )
    cache_bytes = max(taken_bytes - weights_bytes, config.kv_cache_memory_bytes or 0)
    return Need(who, {"weights": weights_bytes, "key-value cache and work": cache_bytes, "process": CONTEXT_BYTES})


def _weights_bytes(files: ModelFiles, dtype: str) -> int:
    if "quantization_config" in files.config:
        return files.weights_bytes
    each_bytes = 4 if dtype == "float32" else 2
    return each_bytes * sum(map(math.prod, files.shapes.values()))


def _keeps_cache(files: ModelFiles) -> bool:
    from bon_server.models.reward.pooling import ENCODERS

    architectures: Sequence[str] = files.config.get("architectures") or ()
    return not any(f"{kind}ForSequenceClassification" in architectures for kind in ENCODERS)


def _reward_models(config: RewardConfig) -> Iterator[tuple[str, str, ModelFiles]]:
    for name, spec in map(split_name, config.models):
        if is_model(spec):
            yield name, spec, find_model(model_of(spec), config.revision)


def _files(config: PolicyConfig) -> ModelFiles:
    return find_model(config.model, config.revision)


def _spec(entry: str) -> str:
    return split_name(entry)[1]


def _free(room: MemoryRoom) -> str:
    return f"{_gib(room.free_bytes)} of the {room.where}'s {_gib(room.total_bytes)} GiB are free"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f}"


def refuse_without_room(files: ModelFiles, dtype: str, kv_cache_memory_bytes: int) -> None:
    """Compares what the test and then the engine of a model need with what is free now.

    dtype: the engine's. The test is over before the engine starts, so the larger of the two counts. Raises StartupError
    with both numbers.
    """
    parameters = sum(math.prod(shape) for shape in files.shapes.values())
    test_bytes = parameters * ITEM_BYTES["float32"]
    engine_bytes = parameters * ITEM_BYTES[dtype] + kv_cache_memory_bytes
    needed_bytes = PROCESS_BYTES + max(test_bytes, engine_bytes)
    room = host_room()
    if needed_bytes > room.free_bytes:
        raise StartupError(
            f"model {files.directory}: beside the policy in use it needs {needed_bytes >> 20} MiB of memory, "
            f"and {room.free_bytes >> 20} MiB of the {room.where}'s are free"
        )


def refuse_without_gpu_room(files: ModelFiles, share: float) -> None:
    """Compares the share of a GPU that an engine wants free with what is free now.

    The one that serves holds its own share and some more, so two halves never fit. Raises StartupError with both
    numbers.
    """
    room = gpu_room()
    if room is not None and share * room.total_bytes > room.free_bytes:
        raise StartupError(
            f"model {files.directory}: beside the policy in use it needs {int(share * room.total_bytes) >> 20} MiB of "
            f"the GPU (policy.gpu_memory_utilization = {share}), and {room.free_bytes >> 20} MiB are free"
        )

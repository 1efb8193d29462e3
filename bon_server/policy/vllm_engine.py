"""Starting and ending vLLM engines. Imports vLLM, so import this only when one is wanted.

What holds for CPUs alone is set where `on_cpu()` says so; nothing here has been run on a GPU yet.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bon_server.config import PolicyConfig
from bon_server.errors import StartupError
from bon_server.weights import ModelFiles

# vLLM reads these while it is imported; what the operator has set is kept.
for _name, _value in {
    "VLLM_LOGGING_LEVEL": "ERROR",  # its warnings are about settings that are made on purpose here
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout belongs to our commands
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",  # of the engine's process; this one has read it already
    "OMP_WAIT_POLICY": "PASSIVE",  # the reward model computes on the same cores: no spinning while idle
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads, which a fork would not survive
}.items():
    os.environ.setdefault(_name, _value)
logging.getLogger("vllm.triton_utils").setLevel(logging.ERROR)  # warns on every CPU before its level is set

from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402
from vllm.v1.engine.async_llm import AsyncLLM  # noqa: E402

from bon_server.policy.dtype import dtype_for  # noqa: E402
from bon_server.policy.engine_process import OneProcessExecutor, ProcessPerGpuExecutor  # noqa: E402
from bon_server.policy.shapes import check_shapes  # noqa: E402

DTYPES = ("auto", "bfloat16", "float16", "float32")
CPU_KV_CACHE_BYTES = 1 << 30
CPU_BLOCK_TOKENS = 32
"""Prompts share whole blocks only; the default of 128 tokens would leave most prompts unshared."""
CPU_SHUTDOWN_S = 0.3
GPU_SHUTDOWN_S = 5.0
"""What the engine's process gets to end by itself. On a CPU that takes it 3 s, and there is nothing to tidy up."""


STREAM_INTERVAL_TOKENS = 8
"""How often a sample that is watched shows what it has; each time costs the event loop some microseconds."""


def on_cpu() -> bool:
    """Whether this vLLM computes on the CPU."""
    return bool(current_platform.is_cpu())


async def start_engine(config: PolicyConfig, files: ModelFiles) -> Any:
    """An `AsyncLLM`, whose process is up and has loaded the model; takes 15 to 40 s on a CPU.

    Does not block the event loop; cancelling it ends the process that is being started. Raises StartupError.
    """
    earlier = set(multiprocessing.active_children())
    try:
        return await _in_a_thread(_start, config, files)
    except asyncio.CancelledError:
        for process in set(multiprocessing.active_children()) - earlier:
            process.kill()  # otherwise the interpreter could not end before the engine has started
        raise


async def end_engine(engine: Any) -> None:
    """Ends the engine's process, by force if it does not go within seconds."""
    if engine.output_handler is not None:
        engine.output_handler.cancel()  # it would report the end as an error
    await _in_a_thread(engine.shutdown, CPU_SHUTDOWN_S if on_cpu() else GPU_SHUTDOWN_S)
    await asyncio.sleep(0)  # the sockets are closed on this loop, and only then may their context be
    engine.engine_core.resources.ctx.destroy(linger=0)


async def _in_a_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a blocking function in a thread that ends with it."""
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, function, *arguments)
    finally:
        thread.shutdown(wait=False)


def _start(config: PolicyConfig, files: ModelFiles) -> Any:
    if config.dtype not in DTYPES:
        raise StartupError(f"policy.dtype {config.dtype!r}: allowed are {', '.join(DTYPES)}")
    if on_cpu():
        _prepare_cpu(config)
    elif config.watch is not None and config.gpu_memory_share > 0.5:
        raise StartupError(
            "policy.watch starts a second engine beside the first, which does not fit a GPU of which policy."
            f"gpu_memory_share = {config.gpu_memory_share} is the first one's; at most 0.5 is allowed"
        )
    check_shapes(files)
    try:
        engine_config = _engine_args(config, files).create_engine_config()
        if on_cpu():
            # Without chunks, a prompt as long as the context must fit beside the samples that run.
            scheduler = engine_config.scheduler_config
            room_tokens = engine_config.model_config.max_model_len + scheduler.max_num_seqs
            scheduler.max_num_batched_tokens = max(scheduler.max_num_batched_tokens, room_tokens)
        return AsyncLLM.from_vllm_config(engine_config, disable_log_stats=True)
    except Exception as error:  # any library below the engine can raise anything here
        raise StartupError(f"policy {config.model}: vLLM cannot start it: {_one_line(error)}") from error


def _prepare_cpu(config: PolicyConfig) -> None:
    """What the engine's process reads from its environment when it starts."""
    # Without a C++ compiler the first compiled kernel would kill the engine; compiling gains nothing measurable.
    os.environ["TORCH_COMPILE_DISABLE"] = "1"
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0)))) if config.cpus == "all" else config.cpus
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cpus
    # The older setting would override `kv_cache_memory_bytes` of every engine in this process.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)


def _engine_args(config: PolicyConfig, files: ModelFiles) -> Any:
    arguments: dict[str, Any] = {
        "model": str(files.directory),
        "load_format": "safetensors",
        "trust_remote_code": False,
        "dtype": dtype_for(config.dtype, on_cpu()),
        "max_model_len": config.context_tokens,
        "max_num_seqs": config.running_samples,
        "kv_cache_memory_bytes": config.kv_cache_bytes,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": 0,
        "stream_interval": STREAM_INTERVAL_TOKENS,
        # With vLLM's default of 0, a server would sample the same again after each restart.
        "seed": secrets.randbits(31) if config.seed is None else config.seed,
        "use_tqdm_on_load": False,
    }
    if on_cpu():
        arguments |= {
            "kv_cache_memory_bytes": config.kv_cache_bytes or CPU_KV_CACHE_BYTES,
            "block_size": CPU_BLOCK_TOKENS,
            "enforce_eager": True,
            # A prefill in chunks kills the engine when the request has a seed (CPU generators have no offset).
            "enable_chunked_prefill": False,
            # The default executor polls: it would take a core from the reward model even while idle.
            "distributed_executor_backend": OneProcessExecutor,
        }
    else:
        several = config.gpus > 1
        arguments |= {
            "gpu_memory_utilization": config.gpu_memory_share,
            "tensor_parallel_size": config.gpus,
            "data_parallel_size": config.data_parallel,
            "distributed_executor_backend": ProcessPerGpuExecutor if several else OneProcessExecutor,
        }
    return AsyncEngineArgs(**arguments)


def _one_line(error: BaseException) -> str:
    if "initialization failed" in str(error):
        return "its process ended while loading, for the reason that vLLM printed above"
    return " ".join(str(error).split())[:300] or type(error).__name__

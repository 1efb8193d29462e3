"""Starting and ending vLLM engines. Imports vLLM, so import this only when one is wanted.

What holds for CPUs alone is set where `on_cpu()` says so; nothing here has been run on a GPU yet.
"""

from __future__ import annotations

import secrets
from typing import Any

from bon_server.config.settings import PolicyConfig
from bon_server.core.errors import StartupError
from bon_server.models.dtype import dtype_for
from bon_server.models.weights import ModelFiles, check_shapes
from bon_server.system.telemetry import Telemetry

# First of all engine imports: it sets what vLLM reads while it is imported.
from bon_server.models.vllm.engine import CPU_BLOCK_TOKENS as CPU_BLOCK_TOKENS  # isort: skip
from bon_server.models.vllm.engine import end_engine as end_engine  # isort: skip
from bon_server.models.vllm.engine import on_cpu as on_cpu  # isort: skip
from bon_server.models.vllm.engine import prepare_cpu, start_process, why  # isort: skip

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

from bon_server.models.vllm.engine_process import OneProcessExecutor, ProcessPerGpuExecutor
from bon_server.models.vllm.stat_logger import stat_logger

DTYPES = ("auto", "bfloat16", "float16", "float32")
CPU_KV_CACHE_BYTES = 1 << 30
STREAM_INTERVAL_TOKENS = 4
"""How often a sample that is watched shows what it has; each time costs the event loop some microseconds."""


async def start_engine(config: PolicyConfig, files: ModelFiles, telemetry: Telemetry | None = None) -> Any:
    """An `AsyncLLM`, whose process is up and has loaded the model; takes 15 to 40 s on a CPU.

    telemetry: where its metrics go; None: it keeps none.

    Does not block the event loop; cancelling it ends the process that is being started. Raises StartupError.
    """
    return await start_process(_start, config, files, telemetry)


def _start(config: PolicyConfig, files: ModelFiles, telemetry: Telemetry | None) -> Any:
    if config.dtype not in DTYPES:
        raise StartupError(f"policy.dtype {config.dtype!r}: allowed are {', '.join(DTYPES)}")
    if on_cpu():
        prepare_cpu(config.cpus)
    elif config.watch is not None and config.gpu_memory_utilization > 0.5:
        raise StartupError(
            "policy.watch starts a second engine beside the first, which does not fit a GPU of which policy."
            f"gpu_memory_utilization = {config.gpu_memory_utilization} is the first one's; at most 0.5 is allowed"
        )
    check_shapes(files)
    try:
        engine_config = _engine_args(config, files).create_engine_config()
        if on_cpu():
            # Without chunks, a prompt as long as the context must fit beside the samples that run.
            scheduler = engine_config.scheduler_config
            room_tokens = engine_config.model_config.max_model_len + scheduler.max_num_seqs
            scheduler.max_num_batched_tokens = max(scheduler.max_num_batched_tokens, room_tokens)
        # True: no lines of statistics, and no metrics but ours, see `stat_logger`.
        loggers = None if telemetry is None else [stat_logger(telemetry, config.engine_metrics)]
        engine = AsyncLLM.from_vllm_config(engine_config, stat_loggers=loggers, disable_log_stats=True)
    except Exception as error:  # any library below the engine can raise anything here
        raise StartupError(f"policy {config.model}: vLLM cannot start it: {why(error)}") from error
    if not config.engine_metrics:
        engine.log_stats = False  # read when it is first used: else figures of each token are gathered for nobody
    # Constraints are checked before (`grammar_gate`). vLLM would check them for each candidate, on the event loop.
    engine.input_processor.structured_outputs_config = None
    return engine


def _engine_args(config: PolicyConfig, files: ModelFiles) -> Any:
    arguments: dict[str, Any] = {
        "model": str(files.directory),
        "served_model_name": "policy",  # in its metrics
        "load_format": "safetensors",
        "trust_remote_code": False,
        "dtype": dtype_for(config.dtype, on_cpu()),
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "kv_cache_memory_bytes": config.kv_cache_memory_bytes,
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
            "kv_cache_memory_bytes": config.kv_cache_memory_bytes or CPU_KV_CACHE_BYTES,
            "block_size": CPU_BLOCK_TOKENS,
            "enforce_eager": True,
            # A prefill in chunks kills the engine when the request has a seed (CPU generators have no offset).
            "enable_chunked_prefill": False,
            # The default executor polls: it would take a core from the reward model even while idle.
            "distributed_executor_backend": OneProcessExecutor,
        }
    else:
        several = config.tensor_parallel_size > 1
        arguments |= {
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "tensor_parallel_size": config.tensor_parallel_size,
            "data_parallel_size": config.data_parallel_size,
            "distributed_executor_backend": ProcessPerGpuExecutor if several else OneProcessExecutor,
        }
    return AsyncEngineArgs(**arguments)

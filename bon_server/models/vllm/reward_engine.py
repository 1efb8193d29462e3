"""Starting the pooling engine of a reward model. Imports vLLM, so import this only when one is wanted.

What holds for CPUs alone is set where `on_cpu()` says so; nothing here has been run on a GPU yet.
"""

from __future__ import annotations

from typing import Any

from bon_server.config.settings import RewardConfig
from bon_server.core.errors import StartupError
from bon_server.models.reward.classifier import DTYPES
from bon_server.models.reward.pooling import PoolingModel
from bon_server.system.telemetry import Telemetry

# First of all engine imports: it sets what vLLM reads while it is imported.
from bon_server.models.vllm.engine import CPU_BLOCK_TOKENS, on_cpu, prepare_cpu, start_process, why  # isort: skip

from vllm.config import PoolerConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

from bon_server.models.vllm.engine_process import OneProcessExecutor
from bon_server.models.vllm.stat_logger import stat_logger

CPU_KV_CACHE_BYTES = 1 << 30
RUNNING_SEQUENCES = 128
"""At most so many in one step; `reward.batch_tokens` bounds their tokens."""


async def start_pooling_engine(config: RewardConfig, model: PoolingModel, name: str, telemetry: Telemetry) -> Any:
    """An `AsyncLLM` that pools; its process is up and has loaded the model. Takes 15 to 20 s on a CPU.

    Does not block the event loop; cancelling it ends the process that is being started. Raises StartupError.
    """
    return await start_process(_start, config, model, name, telemetry)


def _start(config: RewardConfig, model: PoolingModel, name: str, telemetry: Telemetry) -> Any:
    if config.dtype not in DTYPES:
        raise StartupError(f"reward.dtype {config.dtype!r}: allowed are {', '.join(DTYPES)}")
    if on_cpu():
        prepare_cpu(config.cpus)
    try:
        engine_config = _engine_args(config, model, name).create_engine_config()
        # True: no lines of statistics, and no metrics but ours, see `stat_logger`.
        loggers = [stat_logger(telemetry, config.engine_metrics)]
        engine = AsyncLLM.from_vllm_config(engine_config, stat_loggers=loggers, disable_log_stats=True)
    except Exception as error:  # any library below the engine can raise anything here
        raise StartupError(f"reward model {model.files.id}: vLLM cannot start it: {why(error)}") from error
    if not config.engine_metrics:
        engine.log_stats = False  # as in `policy_engine.py`
    return engine


def _engine_args(config: RewardConfig, model: PoolingModel, name: str) -> Any:
    arguments: dict[str, Any] = {
        "model": str(model.files.directory),
        "served_model_name": name,
        "runner": "pooling",
        "load_format": "safetensors",
        "trust_remote_code": False,
        "dtype": config.dtype,
        "max_model_len": model.max_model_len,
        "max_num_seqs": RUNNING_SEQUENCES,
        # Encoders cannot be given their input in pieces.
        "max_num_batched_tokens": config.batch_tokens
        if model.decoder
        else max(config.batch_tokens, model.max_model_len),
        "kv_cache_memory_bytes": config.kv_cache_memory_bytes,
        "enable_prefix_caching": model.decoder,
        "pooler_config": PoolerConfig(seq_pooling_type="LAST" if model.decoder else "CLS", use_activation=False),
        "distributed_executor_backend": OneProcessExecutor,
        "use_tqdm_on_load": False,
    }
    if on_cpu():
        arguments |= {
            "kv_cache_memory_bytes": config.kv_cache_memory_bytes or CPU_KV_CACHE_BYTES,
            "block_size": CPU_BLOCK_TOKENS,
            "enforce_eager": True,
        }
    else:
        arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
    return AsyncEngineArgs(**arguments)

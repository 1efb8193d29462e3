"""Starting and ending vLLM engines, whichever model is in them. Imports vLLM, so import this only when one is wanted.

Engines are started one after the other: each reads its settings from the environment while its process starts.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import multiprocessing
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Any

from bon_server.models.vllm.ending import mute_the_end

# vLLM reads these while it is imported; what the operator has set is kept.
for _name, _value in {
    "VLLM_LOGGING_LEVEL": "ERROR",  # its warnings are about settings that are made on purpose here
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout belongs to our commands
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",  # of the engine's process; this one has read it already
    "OMP_WAIT_POLICY": "PASSIVE",  # what else computes on the same cores must not wait for threads that spin idly
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads, which a fork would not survive
    "TRITON_F32_DEFAULT": "ieee",  # or attention in float32 would have the 10 bits of TF32 on a GPU, and say float32
    "VLLM_HOST_IP": "127.0.0.1",  # or it would ask the routing table which of our addresses others reach
}.items():
    os.environ.setdefault(_name, _value)
# Torch's backends listen where the host's name points to, unless told otherwise: maybe where other machines reach them.
_loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
if _loopback is not None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", _loopback)
atexit.register(mute_the_end)
logging.getLogger("vllm.triton_utils").setLevel(logging.ERROR)  # warns on every CPU before its level is set

from vllm.platforms import current_platform  # noqa: E402
from vllm.utils.system_utils import kill_process_tree  # noqa: E402

CPU_BLOCK_TOKENS = 32
"""Prompts share whole blocks only; the default of 128 tokens would leave most prompts unshared."""
CPU_SHUTDOWN_S = 0.3
GPU_SHUTDOWN_S = 5.0
"""What the engine's process gets to end by itself. On a CPU that takes it 3 s, and there is nothing to tidy up."""


def on_cpu() -> bool:
    """Whether this vLLM computes on the CPU."""
    return bool(current_platform.is_cpu())


async def start_process(start: Callable[..., Any], *arguments: Any) -> Any:
    """What `start` returns: an engine whose process is up. `start` runs in a thread.

    Does not block the event loop; cancelling it ends the process that is being started.
    """
    earlier = set(multiprocessing.active_children())
    starting = asyncio.ensure_future(_in_a_thread(start, *arguments))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # The thread cannot be told. It may not have come to its process yet, and the interpreter could not end before.
        while not starting.done():
            _kill_but(earlier)
            await asyncio.wait([starting], timeout=0.05)
        _kill_but(earlier)
        starting.exception()  # how it ended matters to nobody
        raise


def _kill_but(earlier: set[BaseProcess]) -> None:
    """With their workers: those look for their parent only once they have loaded the model."""
    for process in set(multiprocessing.active_children()) - earlier:
        if process.pid is not None:
            kill_process_tree(process.pid)


async def end_engine(engine: Any) -> None:
    """Ends the engine's process, by force if it does not go within seconds."""
    if engine.output_handler is not None:
        engine.output_handler.cancel()  # it would report the end as an error
    await _in_a_thread(engine.shutdown, CPU_SHUTDOWN_S if on_cpu() else GPU_SHUTDOWN_S)
    await asyncio.sleep(0)  # the sockets are closed on this loop, and only then may their context be
    engine.engine_core.resources.ctx.destroy(linger=0)


def prepare_cpu(cpus: str) -> None:
    """What the engine's process reads from its environment when it starts. cpus: `all` or a list as in `0-3,8`."""
    # Without a C++ compiler the first compiled kernel would kill the engine; compiling gains nothing measurable.
    os.environ["TORCH_COMPILE_DISABLE"] = "1"
    listed = ",".join(map(str, sorted(os.sched_getaffinity(0)))) if cpus == "all" else cpus
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = listed
    # The older setting would override `kv_cache_memory_bytes` of every engine in this process.
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)


def why(error: BaseException) -> str:
    """Why an engine did not start, on one line."""
    if "initialization failed" in str(error):
        return "its process ended while loading, for the reason that vLLM printed above"
    return " ".join(str(error).split())[:300] or type(error).__name__


async def _in_a_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a blocking function in a thread that ends with it."""
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, function, *arguments)
    finally:
        thread.shutdown(wait=False)

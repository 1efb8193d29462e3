"""Whether a second engine fits into memory beside the one that serves."""

from __future__ import annotations

import math

from bon_server.engine.memory import PROCESS_BYTES, gpu_room, host_room
from bon_server.errors import StartupError
from bon_server.weights import ModelFiles

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def refuse_without_room(files: ModelFiles, dtype: str, kv_cache_bytes: int) -> None:
    """Compares what the test and then the engine of a model need with what is free now.

    dtype: the engine's. The test is over before the engine starts, so the larger of the two counts. Raises StartupError
    with both numbers.
    """
    parameters = sum(math.prod(shape) for shape in files.shapes.values())
    test_bytes = parameters * ITEM_BYTES["float32"]
    engine_bytes = parameters * ITEM_BYTES[dtype] + kv_cache_bytes
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
            f"the GPU (policy.gpu_memory_share = {share}), and {room.free_bytes >> 20} MiB are free"
        )

"""Room for a second engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from bon_server.core.errors import StartupError
from bon_server.models import memory_plan
from bon_server.models.memory_plan import refuse_without_gpu_room, refuse_without_room
from bon_server.models.weights import ModelFiles
from bon_server.system.memory import MemoryRoom

GIB = 1 << 30
FILES = ModelFiles("m", Path("/m"), "r", 0, {}, {"a": (GIB // 4, 2), "b": (GIB // 2,)}, {"a": "BF16", "b": "BF16"})
"""A billion parameters."""


@pytest.mark.parametrize(
    ("dtype", "cache_gib", "needed_gib"), [("bfloat16", 1, 5), ("bfloat16", 4, 7), ("float32", 1, 6)]
)
def test_the_larger_of_test_and_engine_has_to_fit(
    dtype: str, cache_gib: int, needed_gib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_free(free_gib: int) -> None:
        monkeypatch.setattr(memory_plan, "host_room", lambda: MemoryRoom("machine", 64 * GIB, free_gib * GIB))
        refuse_without_room(FILES, dtype, cache_gib * GIB)

    with_free(needed_gib)
    with pytest.raises(StartupError, match=rf"{needed_gib * 1024} MiB .* {(needed_gib - 1) * 1024} MiB of the machine"):
        with_free(needed_gib - 1)


def test_an_engine_wants_its_share_of_a_gpu_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_free(free_gib: float) -> None:
        monkeypatch.setattr(memory_plan, "gpu_room", lambda: MemoryRoom("GPU", 40 * GIB, int(free_gib * GIB)))
        refuse_without_gpu_room(FILES, 0.4)

    with_free(16)
    with pytest.raises(
        StartupError, match=r"16384 MiB of the GPU \(policy.gpu_memory_utilization = 0.4\), and 15872 MiB"
    ):
        with_free(15.5)

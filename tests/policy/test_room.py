"""Room for a second engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from bon_server.engine.memory import Room
from bon_server.errors import StartupError
from bon_server.policy import room
from bon_server.policy.room import refuse_without_room
from bon_server.weights import ModelFiles

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
        monkeypatch.setattr(room, "host_room", lambda: Room("machine", 64 * GIB, free_gib * GIB))
        refuse_without_room(FILES, dtype, cache_gib * GIB)

    with_free(needed_gib)
    with pytest.raises(StartupError, match=rf"{needed_gib * 1024} MiB .* {(needed_gib - 1) * 1024} MiB of the machine"):
        with_free(needed_gib - 1)

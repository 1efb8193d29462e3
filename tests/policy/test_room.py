"""Room for a second engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from bon_server.errors import StartupError
from bon_server.policy import room
from bon_server.policy.room import available, refuse_without_room
from bon_server.weights import ModelFiles

GIB = 1 << 30
FILES = ModelFiles("m", Path("/m"), "r", 0, {}, {"a": (GIB // 4, 2), "b": (GIB // 2,)}, {"a": "BF16", "b": "BF16"})
"""A billion parameters."""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where its files are; there are none yet."""
    monkeypatch.setattr(room, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(room, "CGROUP", tmp_path)
    return tmp_path


def say(machine: Path, available_gib: int) -> None:
    kib = available_gib << 20
    (machine / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemFree: 5 kB\nMemAvailable: {kib} kB\n")


def test_what_is_available(machine: Path) -> None:
    assert available() is None
    say(machine, 6)
    assert available() == 6 * GIB
    (machine / "memory.max").write_text("max\n")
    assert available() == 6 * GIB
    (machine / "memory.max").write_text(f"{5 * GIB}\n")
    (machine / "memory.current").write_text(f"{3 * GIB}\n")
    (machine / "memory.stat").write_text(f"anon {GIB}\ninactive_file {GIB}\nactive_file {GIB}\n")
    assert available() == 4 * GIB


@pytest.mark.parametrize(
    ("dtype", "cache_gib", "needed_gib"), [("bfloat16", 1, 5), ("bfloat16", 4, 7), ("float32", 1, 6)]
)
def test_the_larger_of_test_and_engine_has_to_fit(dtype: str, cache_gib: int, needed_gib: int, machine: Path) -> None:
    say(machine, needed_gib)
    refuse_without_room(FILES, dtype, cache_gib * GIB)
    say(machine, needed_gib - 1)
    with pytest.raises(StartupError, match=rf"{needed_gib * 1024} MiB .* {(needed_gib - 1) * 1024} MiB are available"):
        refuse_without_room(FILES, dtype, cache_gib * GIB)


def test_nothing_is_refused_where_nobody_knows() -> None:
    refuse_without_room(FILES, "float32", 1 << 60)

"""How much memory there is, what models will take of it, and what cannot fit."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from bon_server.config.settings import Config, load
from bon_server.core.errors import StartupError
from bon_server.models import memory_plan as planning
from bon_server.models.memory_plan import MemoryPlan, memory_plan
from bon_server.system import memory
from bon_server.system.memory import PROCESS_BYTES, MemoryRoom, gpu_room, host_room
from tests.conftest import StartServer

GIB = 1 << 30
MEMINFO = f"MemTotal: {16 << 20} kB\nMemFree: 1 kB\nMemAvailable: {12 << 20} kB\n"


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("", {}, MemoryRoom("machine", 16 * GIB, 12 * GIB)),
        ("0::/\n", {"memory.max": "max"}, MemoryRoom("machine", 16 * GIB, 12 * GIB)),
        ("0::/a/b\n", {"a/b/memory.max": str(15 * GIB)}, MemoryRoom("machine", 16 * GIB, 12 * GIB)),
        (
            "0::/a/b\n",
            {"a/memory.max": str(8 * GIB), "a/memory.current": str(3 * GIB), "a/memory.stat": f"inactive_file {GIB}"},
            MemoryRoom("control group", 8 * GIB, 6 * GIB),
        ),
        (
            "4:memory:/not/mounted/here\n0::/\n",
            {"memory/memory.limit_in_bytes": str(2 * GIB), "memory/memory.usage_in_bytes": str(3 * GIB)},
            MemoryRoom("control group", 2 * GIB, 0),
        ),
    ],
    ids=["no groups", "no limit", "a limit above what is free", "of a group above", "version 1"],
)
def test_the_room(groups: str, limits: dict[str, str], expected: MemoryRoom, tmp_path: Path) -> None:
    proc = written(tmp_path / "proc", {"meminfo": MEMINFO, "self/cgroup": groups})
    assert host_room(proc, written(tmp_path / "groups", limits)) == expected


def test_the_room_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(memory, "ASK_THE_GPU", "print(3, 5)")
    assert gpu_room() == MemoryRoom("GPU", 5, 3)
    monkeypatch.setattr(memory, "ASK_THE_GPU", "print(1); raise RuntimeError('all CUDA-capable devices are busy')")
    with pytest.raises(StartupError, match="the GPU cannot be used: RuntimeError: all CUDA-capable devices are busy"):
        gpu_room()
    monkeypatch.setattr(memory, "ASK_THE_GPU", "import time; time.sleep(60)")
    monkeypatch.setattr(memory, "GPU_ANSWERS_S", 0.1)
    with pytest.raises(StartupError, match="it says nothing for 0"):
        gpu_room()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_room() is None


def test_this_machine_has_some() -> None:
    room = host_room()
    assert 0 < room.free_bytes <= room.total_bytes


def model(directory: Path, architecture: str, numbers: int) -> str:
    """A directory with so many 16-bit numbers for weights."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    header = {"w": {"dtype": "BF16", "shape": [numbers // 1024, 1024], "data_offsets": [0, 2 * numbers]}}
    head = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + 2 * numbers)  # a hole: it takes no place on the disk
    return str(directory)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A policy with 32 Mi numbers, a decoder and an encoder with half as many each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return {
        "policy": model(tmp_path / "policy", "LlamaForCausalLM", 32 << 20),
        "decoder": model(tmp_path / "decoder", "LlamaForSequenceClassification", 16 << 20),
        "encoder": model(tmp_path / "encoder", "BertForSequenceClassification", 16 << 20),
    }


def config(**settings: Any) -> Config:
    return load(None, {}, settings)


def made(
    settings: Config, monkeypatch: pytest.MonkeyPatch, host: MemoryRoom, gpu: MemoryRoom | None = None
) -> MemoryPlan:
    monkeypatch.setattr(planning, "host_room", lambda: host)
    monkeypatch.setattr(planning, "gpu_room", lambda: gpu)
    plan = memory_plan(settings)
    assert plan is not None
    return plan


def test_what_needs_no_weights_needs_no_plan() -> None:
    assert (
        memory_plan(config(**{"policy.model": "synthetic", "reward.models": ["a=synthetic", "function:m:f"]})) is None
    )


def test_engines_on_a_cpu(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(
        **{
            "policy.model": models["policy"],
            "policy.dtype": "float32",
            "policy.kv_cache_memory_bytes": 2 * GIB,
            "reward.models": [f"a=vllm:{models['decoder']}", f"b=vllm:{models['encoder']}", f"c={models['decoder']}"],
            "reward.kv_cache_memory_bytes": GIB // 2,
        }
    )
    plan = made(settings, monkeypatch, MemoryRoom("machine", 16 * GIB, 12 * GIB))
    parts = {need.who: dict(need.parts) for need in plan.needs}
    assert parts["policy"] == {"weights": GIB // 8, "key-value cache": 2 * GIB, "process": PROCESS_BYTES}
    assert parts["reward model a"] == {
        "weights": GIB // 16,
        "key-value cache": GIB // 2,
        "process": PROCESS_BYTES,
    }
    assert "key-value cache" not in parts["reward model b"], "an encoder keeps none"
    assert parts["reward model c"] == {"weights": GIB // 16, "prompts": planning.KEPT_PROMPTS_BYTES}
    assert plan.needed_bytes == sum(size for need in parts.values() for size in need.values())
    assert plan.fits
    plan.check()
    assert f"spare {(12 * GIB - plan.needed_bytes) / GIB:.2f}" in str(plan)


def test_what_does_not_fit_is_refused_with_both_numbers(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(**{"policy.model": models["policy"], "policy.kv_cache_memory_bytes": 9 * GIB})
    plan = made(settings, monkeypatch, MemoryRoom("control group", 8 * GIB, 7 * GIB))
    assert not plan.fits
    with pytest.raises(
        StartupError, match=f"need {plan.needed_bytes / GIB:.2f} GiB.* 7.00 of the control group's 8.00"
    ):
        plan.check()


def test_shares_of_a_gpu(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"policy.model": models["policy"], "reward.models": [f"vllm:{models['decoder']}"]}
    host, gpu = MemoryRoom("machine", GIB, GIB), MemoryRoom("GPU", 10 * GIB, 10 * GIB)
    plan = made(config(**settings), monkeypatch, host, gpu)
    context_bytes = planning.CONTEXT_BYTES
    shares_bytes = [int(0.7 * 10 * GIB), int(0.2 * 10 * GIB)]
    assert [need.total_bytes for need in plan.needs] == [share + context_bytes for share in shares_bytes]
    assert plan.room == gpu
    plan.check()
    too_much = made(config(**settings, **{"reward.gpu_memory_utilization": 0.4}), monkeypatch, host, gpu)
    with pytest.raises(
        StartupError, match=r"need 11\.60 GiB .* 10\.00 of the GPU's 10\.00 GiB.* smaller gpu_memory_utilization"
    ):
        too_much.check()
    with pytest.raises(StartupError, match=r"reward\.gpu_memory_utilization = 0\.001"):
        made(config(**settings, **{"reward.gpu_memory_utilization": 0.001}), monkeypatch, host, gpu)


def test_a_gpu_has_to_hold_the_next_weights_too(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"policy.model": models["policy"], "policy.watch": "checkpoints"}
    host, gpu = MemoryRoom("machine", GIB, GIB), MemoryRoom("GPU", 10 * GIB, 10 * GIB)
    made(config(**settings, **{"policy.gpu_memory_utilization": 0.4}), monkeypatch, host, gpu).check()
    with pytest.raises(StartupError, match=r"policy's next weights beside it \(policy\.watch\) 5\.30"):
        made(config(**settings, **{"policy.gpu_memory_utilization": 0.5}), monkeypatch, host, gpu).check()


def test_a_cache_larger_than_the_share_counts(models: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    host, gpu = MemoryRoom("machine", GIB, GIB), MemoryRoom("GPU", 10 * GIB, 10 * GIB)
    share_bytes = int(0.7 * 10 * GIB)

    def taken_bytes(cache_gib: int) -> int:
        settings = config(**{"policy.model": models["policy"], "policy.kv_cache_memory_bytes": cache_gib * GIB})
        return made(settings, monkeypatch, host, gpu).needs[0].total_bytes - planning.CONTEXT_BYTES

    assert taken_bytes(1) == share_bytes, "vLLM wants it free all the same"
    assert taken_bytes(9) == 9 * GIB + GIB // 16, "with the weights"


async def test_a_server_that_cannot_fit_its_models_does_not_start(
    start_server: StartServer, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "host_room", lambda: MemoryRoom("machine", GIB, GIB))
    with pytest.raises(StartupError, match=r"need .* GiB of memory, and 1\.00 of the machine's 1\.00 GiB are free"):
        await start_server(**{"reward.models": [f"vllm:{models['decoder']}"]})

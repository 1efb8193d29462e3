"""Engines that cannot start, are given up while starting, or die."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bon_server.config.settings import PolicyConfig
from bon_server.core.errors import StartupError, Unavailable
from bon_server.core.types import Sampling

if TYPE_CHECKING:
    from bon_server.models.vllm.policy import VllmPolicy

pytestmark = [pytest.mark.models, pytest.mark.slow]

KV_CACHE_BYTES = 64 << 20


@pytest.fixture
def policy_class() -> type[VllmPolicy]:
    """Imported late: it takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from bon_server.models.vllm.policy import VllmPolicy
    return VllmPolicy


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Whatever happens, no engine outlives its test."""
    earlier = set(multiprocessing.active_children())
    yield
    deadline = time.monotonic() + 10
    while set(multiprocessing.active_children()) - earlier and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(multiprocessing.active_children()) - earlier


@pytest.fixture
def copied(model_directory: Path, tmp_path: Path) -> Path:
    """A model directory to spoil."""
    return Path(shutil.copytree(model_directory, tmp_path / "model"))


def mapped(pid: int | None) -> str:
    """What a process has in its memory, as the kernel lists it."""
    return Path(f"/proc/{pid}/maps").read_text()


async def refusal(policy_class: type[VllmPolicy], config: PolicyConfig) -> str:
    with pytest.raises(StartupError) as caught:
        await policy_class.start(config)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 600
    return sentence


async def test_files_that_cannot_be_used(policy_class: type[VllmPolicy], copied: Path) -> None:
    assert "no such directory" in await refusal(policy_class, PolicyConfig(model=str(copied / "absent")))
    (copied / "model.safetensors").write_bytes(b"\x80\x04.")
    assert "damaged" in await refusal(policy_class, PolicyConfig(model=str(copied)))
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    assert "pickled" in await refusal(policy_class, PolicyConfig(model=str(copied)))


async def test_settings_that_cannot_be(policy_class: type[VllmPolicy], model_directory: Path) -> None:
    model = str(model_directory)
    assert "int4" in await refusal(policy_class, PolicyConfig(model=model, dtype="int4"))
    assert "99999" in await refusal(policy_class, PolicyConfig(model=model, max_model_len=99_999))


async def test_a_kind_of_model_that_nobody_knows(policy_class: type[VllmPolicy], copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(
        json.dumps(config | {"model_type": "nobody-knows", "architectures": ["Nobody"]})
    )
    assert await refusal(policy_class, PolicyConfig(model=str(copied)))


async def test_weights_that_are_not_all_there(policy_class: type[VllmPolicy], copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    policy_config = PolicyConfig(model=str(copied), kv_cache_memory_bytes=KV_CACHE_BYTES)
    assert "while loading" in await refusal(policy_class, policy_config)


async def test_giving_up_while_it_starts(policy_class: type[VllmPolicy], model_directory: Path) -> None:
    earlier = multiprocessing.active_children()
    starting = asyncio.create_task(
        policy_class.start(PolicyConfig(model=str(model_directory), kv_cache_memory_bytes=KV_CACHE_BYTES))
    )
    while multiprocessing.active_children() == earlier:
        assert not starting.done()
        await asyncio.sleep(0.05)
    starting.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert time.monotonic() - began < 5


async def test_giving_up_before_there_is_a_process(policy_class: type[VllmPolicy]) -> None:
    """The thread that starts it reads configurations first, and does not know yet that nobody wants it."""
    from bon_server.models.vllm.engine import start_process

    reading, go_on = threading.Event(), threading.Event()
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))

    def start() -> None:
        reading.set()
        go_on.wait()
        process.start()
        process.join()  # as vLLM waits for the process to be ready, or dead

    starting = asyncio.create_task(start_process(start))
    await asyncio.to_thread(reading.wait)
    starting.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(starting, 10)
    assert process.exitcode == -signal.SIGKILL


async def test_an_engine_that_is_killed(policy_class: type[VllmPolicy], model_directory: Path) -> None:
    earlier = set(multiprocessing.active_children())
    policy = await policy_class.start(
        PolicyConfig(model=str(model_directory), dtype="float32", kv_cache_memory_bytes=KV_CACHE_BYTES)
    )
    (process,) = set(multiprocessing.active_children()) - earlier
    assert os.getpgid(process.pid or 0) == process.pid
    assert "/dev/shm/sem." not in mapped(process.pid), "nothing that outlives it"
    endless = Sampling(temperature=0.0, max_tokens=2000)  # goes on for 1,300 tokens
    running = [asyncio.create_task(policy.sample(f"a{index}", (9, 9), endless)) for index in range(8)]
    await asyncio.sleep(0.2)
    os.kill(process.pid or 0, signal.SIGKILL)
    for outcome in await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), 30):
        assert isinstance(outcome, Unavailable)
    assert not policy.healthy
    with pytest.raises(Unavailable, match="died"):
        await policy.sample("later", (5, 6), endless)
    await policy.abort(["a0"])
    await asyncio.wait_for(policy.close(), 10)
    with pytest.raises(Unavailable, match="ended"):
        await policy.sample("last", (5, 6), endless)

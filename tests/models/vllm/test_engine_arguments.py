"""What is passed to vLLM on a GPU, as far as that can be told without one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from bon_server.config.settings import PolicyConfig
from bon_server.core.errors import StartupError
from bon_server.models.weights import ModelFiles

pytestmark = [pytest.mark.models, pytest.mark.slow]


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    """Of a model whose directory is there: with HF_HUB_OFFLINE=1 vLLM takes any other path for a hub id."""
    return ModelFiles("m", tmp_path, "r", 0, {}, {}, {})


@pytest.fixture
def policy_engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, as on a machine with GPUs. Imported late: it takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from bon_server.models.vllm import policy_engine
    monkeypatch.setattr(policy_engine, "on_cpu", lambda: False)
    return policy_engine


def test_parallel_sizes(policy_engine: Any, files: ModelFiles) -> None:
    one = policy_engine._engine_args(PolicyConfig(), files)
    assert (one.tensor_parallel_size, one.data_parallel_size) == (1, 1)
    assert one.distributed_executor_backend is policy_engine.OneProcessExecutor
    many = policy_engine._engine_args(PolicyConfig(tensor_parallel_size=2, data_parallel_size=3), files)
    assert (many.tensor_parallel_size, many.data_parallel_size) == (2, 3)
    assert many.distributed_executor_backend is policy_engine.ProcessPerGpuExecutor


def test_watching_needs_room_for_two(policy_engine: Any, files: ModelFiles) -> None:
    with pytest.raises(StartupError, match=r"gpu_memory_utilization = 0\.7 .* at most 0\.5"):
        policy_engine._start(PolicyConfig(watch="/checkpoints"), files, None)

"""Steps in a process of their own: results, progress, errors, deaths; and the two real ones, on a tiny policy."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bon_server.core.errors import RoundFailed, StartupError
from bon_server.loop.rounds import steps
from bon_server.loop.rounds.evaluation import SampledText
from bon_server.loop.rounds.kl import kl_of_texts
from bon_server.offline.train.options import TrainOptions
from bon_server.offline.train.train import train
from bon_server.system.child_process import in_child
from tests.loop.rounds.child_functions import counted, dying, failing, with_semaphore
from tests.tiny_models import save_policy


def test_results_and_progress_come_back() -> None:
    told: list[int] = []
    pid, last = in_child(counted, 3, tell=told.append)
    assert (told, last) == ([0, 1, 2], 3)
    assert pid != os.getpid()


def test_errors_come_back() -> None:
    with pytest.raises(RoundFailed, match="nothing there"):
        in_child(failing, "nothing there")
    with pytest.raises(StartupError, match="the process for dying ended with code -9"):
        in_child(dying)


def test_a_process_that_is_done_cleans_up() -> None:
    name = in_child(with_semaphore)
    assert name.startswith("/mp-")
    assert not Path(f"/dev/shm/sem.{name[1:]}").exists()


@pytest.mark.slow
def test_a_tiny_policy_is_trained_and_measured(tmp_path: Path) -> None:
    base, data = save_policy(tmp_path / "base"), tmp_path / "rows.jsonl"
    user, answer = [{"role": "user", "content": "hi"}], [{"role": "assistant", "content": "aaaa"}]
    data.write_text((json.dumps({"prompt": user, "completion": answer}) + "\n") * 16)
    options = TrainOptions(
        data=data, policy=base, out=tmp_path / "tuned", learning_rate=1e-2, batch_size=4, dtype="float32"
    )
    steps: list[Any] = []
    told = in_child(train, options, tell=steps.append)
    assert json.loads((tmp_path / "tuned/training.json").read_bytes()) == told
    assert steps[-1].step == steps[-1].steps == 8
    texts = [SampledText((1, 5, 9), (70, 71, 2), 0.8, 1.0)] * 2
    done: list[int] = []
    first, second = in_child(kl_of_texts, str(tmp_path / "tuned"), str(base), texts, tell=done.append)
    assert first == second > 0.01
    assert done == [1, 2]


@pytest.mark.parametrize(("before", "seen"), [(None, "0"), ("2,3", "2"), ("", "")])
def test_training_sees_the_first_gpu_only(before: str | None, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "whatever it was")  # restored afterwards
    if before is None:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = before
    monkeypatch.setattr(steps, "train", lambda options, tell: {"gpus": os.environ["CUDA_VISIBLE_DEVICES"]})
    options = TrainOptions(data=Path("data"), policy="policy", out=Path("out"))
    assert steps.train_on_one_gpu(options, lambda progress: None) == {"gpus": seen}

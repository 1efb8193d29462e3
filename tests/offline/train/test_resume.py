"""A run that is killed goes on with the same command, and ends in the weights of one that was not, bit for bit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bon_server.core.errors import TrainingError
from bon_server.offline.train import curve
from bon_server.offline.train import train as training
from bon_server.offline.train.options import TrainOptions
from bon_server.offline.train.train import Progress, train
from bon_server.offline.train.work_folder import WorkFolder
from tests import tiny_models
from tests.offline.train import killed_trainer
from tests.offline.train.killed_trainer import options_of
from tests.offline.train.sets import make_log, select_from


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resuming")
    tiny_models.save_policy(folder / "policy")
    log = make_log(folder / "log")
    for form in ("trl-tokens", "trl-dpo"):
        select_from(log, folder / form, form)
    return folder


def kill_at(folder: Path, method: str, lora: bool, last_step: int) -> None:
    words = [str(folder), method, "lora" if lora else "full", str(last_step)]
    done = subprocess.run([sys.executable, killed_trainer.__file__, *words], capture_output=True, timeout=200)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def weights(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def history(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Loss, norm of the gradient and learning rate of each step: other rows would have others."""
    told: list[dict[str, Any]] = document["history"]
    return told


@pytest.mark.parametrize(
    ("method", "lora"), [("sft", True), pytest.param("sft", False, marks=pytest.mark.long), ("dpo", True)]
)
@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_weights(folder: Path, method: str, lora: bool) -> None:
    """Killed in the second of three epochs; a second time after it had gone on."""
    whole = train(options_of(folder, "whole", method, lora))
    kill_at(folder, method, lora, 5)
    work = WorkFolder(folder / "killed")
    assert not work.out.exists() and work.last_checkpoint() == work.checkpoints / "checkpoint-4"
    torn = work.checkpoints / "checkpoint-6"  # as if killed while it was being written
    torn.mkdir()
    (torn / "trainer_state.json").write_text("{")
    progress: list[Progress] = []
    resumed = train(options_of(folder, "killed", method, lora), progress.append)
    assert [one.step for one in progress] == [4, 5, 6, 7, 8, 9]
    assert history(resumed) == history(whole)
    assert weights(folder / "killed") == weights(folder / "whole")
    assert resumed["revision"] == whole["revision"]
    assert resumed["metrics"]["tokens"] == whole["metrics"]["tokens"]
    assert not work.path.exists()
    for out in ("whole", "killed"):
        shutil.rmtree(folder / out)


@pytest.mark.parametrize("moment", ["merging", "renaming", "removing"])
def test_killed_at_the_end_it_only_finishes(folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    options = options_of(folder, f"end-{moment}", "sft", lora=True)
    work = WorkFolder(options.out)

    class Killed(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as broken:
        target = {"merging": (curve, "draw"), "renaming": (WorkFolder, "publish")}
        broken.setattr(*target.get(moment, (WorkFolder, "remove")), die)
        with pytest.raises(Killed):
            train(options)
    assert options.out.exists() == (moment == "removing"), "whole, or not there"
    assert work.path.exists()
    progress: list[Progress] = []
    document = train(options, progress.append)
    assert [one.step for one in progress] == ([] if moment == "removing" else [9])
    assert document.get("already_finished", False) == (moment == "removing")
    assert len(document["history"]) == 9
    assert json.loads((options.out / "training.json").read_bytes())["revision"] == document["revision"]
    assert not work.path.exists()


def test_another_run_in_the_place_of_an_unfinished_one_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(folder, "other", "sft", lora=True)
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(training, "_fit", _interrupted)
        train(options)
    with pytest.raises(
        TrainingError, match=r"another run \(data.sha256: .* options.method: \"sft\" there, \"dpo\" given"
    ):
        train(options_of(folder, "other", "dpo", lora=True))
    assert train(options)["metrics"]["steps"] == 9


def _interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def test_two_runs_at_a_time_are_refused(folder: Path) -> None:
    from bon_server.core.errors import LogLocked

    options: TrainOptions = options_of(folder, "twice", "sft", lora=True)

    def again(_: Progress) -> None:
        with pytest.raises(LogLocked, match="is being written by another process: pid"):
            train(options)

    train(options, again)


def test_a_run_of_before_whose_options_had_other_names_is_gone_on_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(folder, "earlier", "sft", lora=True)
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(training, "_fit", _interrupted)
        train(options)
    with_earlier_names(WorkFolder(options.out).path / "run.json")
    train(options)
    with_earlier_names(options.out / "training.json")
    assert train(options)["already_finished"]


def with_earlier_names(file: Path) -> None:
    """Writes a document as the version before did."""
    earlier = {"per_device_train_batch_size": "micro_batch_size", "lr_scheduler_type": "schedule"}
    text = file.read_text()
    for today, before in (earlier | {"warmup_ratio": "warmup_share"}).items():
        assert f'"{today}"' in text
        text = text.replace(f'"{today}"', f'"{before}"')
    file.write_text(text)

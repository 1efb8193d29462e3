"""A tiny policy trained for real: what it learns from, what comes out, and what is refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from bon_server.core.errors import ConfigError, StartupError, TrainingError
from bon_server.models.policy.adapter import check_adapter
from bon_server.models.tokenizer import tokenizer_digest
from bon_server.models.weights import find_model
from bon_server.offline.train import train as training
from bon_server.offline.train.examples import Audit, examples_of
from bon_server.offline.train.options import TrainOptions
from bon_server.offline.train.sources import open_source
from bon_server.offline.train.train import Progress, train
from bon_server.offline.train.work_folder import WorkFolder
from tests import tiny_models
from tests.offline.train.sets import encoder_of, make_log, select_from

QUICK: dict[str, Any] = {"batch_size": 8, "learning_rate": 1e-2, "epochs": 2, "dtype": "float32"}
"""Six steps of the 24 rows."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, selections of a log, and the policy trained on the one of sampled tokens."""
    folder = tmp_path_factory.mktemp("training")
    tiny_models.save_policy(folder / "policy", tie_word_embeddings=True)
    (folder / "policy" / "generation_config.json").write_text('{"eos_token_id": [0, 2], "temperature": 0.7}')
    log = make_log(folder / "log")
    for form in ("trl-tokens", "trl-sft", "trl-dpo"):
        select_from(log, folder / form, form)
    train(options(folder))
    return folder


def options(folder: Path, **changes: Any) -> TrainOptions:
    defaults = {"data": folder / "trl-tokens", "policy": folder / "policy", "out": folder / "tuned"}
    return TrainOptions(**(QUICK | defaults | changes))


def result_of(out: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((out / "training.json").read_bytes())
    return document


def loss_of(model_directory: Path, folder: Path, on_prompts: bool = False) -> float:
    """Mean nats a token of the answers, or of the prompts, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()
    source = open_source("data", folder / "trl-tokens", "sft")
    losses = []
    for one in examples_of(source, encoder_of(folder / "policy"), 2048, Audit()):
        ids, labels = (torch.tensor(column[None], dtype=torch.long) for column in one.columns)
        if on_prompts:
            labels = torch.where(labels == -100, ids, torch.tensor(-100))
        with torch.inference_mode():
            losses.append(float(model(ids, labels=labels).loss))
    return sum(losses) / len(losses)


def logits_of(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(torch.arange(3, 120)[None]).logits[0]  # type: ignore[no-any-return]


def test_the_result_is_a_model_that_learned_the_answers(folder: Path) -> None:
    document = result_of(folder / "tuned")
    losses = [one["loss"] for one in document["history"]]
    assert len(losses) == document["metrics"]["steps"] == 6
    assert losses[-1] < 0.6 * losses[0]
    before, after = (loss_of(folder / name, folder) for name in ("policy", "tuned"))
    assert before == pytest.approx(losses[0], rel=0.1), "the loss that is told is that of the answers alone"
    assert after < 0.7 * before
    prompts_before, prompts_after = (loss_of(folder / name, folder, on_prompts=True) for name in ("policy", "tuned"))
    assert prompts_after > 0.8 * prompts_before, "what is alike in all prompts would have been learned first"


def test_only_answers_have_labels_in_the_batches_that_are_trained_on(folder: Path, tmp_path: Path) -> None:
    """Through the loader and the collator of the trainer itself."""
    from bon_server.offline.train.plan import make_plan, read_rows
    from bon_server.offline.train.trainer import StepSampler, build_trainer

    plan = make_plan(options(folder), processes=1)
    rows = read_rows(plan)
    resolved = replace(plan.options, save_steps=1)
    trainer = build_trainer(resolved, plan.files, plan.tokenizer, rows.train, [], tmp_path)
    assert isinstance(trainer.rows_sampler, StepSampler)
    wanted = {tuple(one.columns[0].tolist()): one.columns[1].tolist() for one in rows.train}
    seen = []
    for batch in trainer.get_train_dataloader():
        lengths = batch["attention_mask"].sum(1).tolist()
        assert lengths == sorted(lengths, reverse=True)
        for ids, labels, length in zip(batch["input_ids"], batch["labels"], lengths, strict=True):
            assert labels[:length].tolist() == wanted[tuple(ids[:length].tolist())]
            assert set(labels[length:].tolist()) <= {-100}, "padding"
            seen.append(tuple(ids[:length].tolist()))
    assert sorted(seen) == sorted(wanted)


def test_the_order_is_another_one_in_each_epoch_and_the_same_for_each_seed() -> None:
    from bon_server.offline.train.trainer import StepSampler

    def order(seed: int, epoch: int) -> list[int]:
        sampler = StepSampler([1] * 50, 8, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert sorted(order(0, 0)) == list(range(50))
    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_merged_weights_are_base_and_adapter(folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder / "policy")
    expected = logits_of(PeftModel.from_pretrained(base, str(folder / "tuned" / "adapter")))
    merged = AutoModelForCausalLM.from_pretrained(folder / "tuned")
    assert torch.allclose(logits_of(merged), expected, atol=1e-4)
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert not torch.allclose(expected, logits_of(AutoModelForCausalLM.from_pretrained(folder / "policy")), atol=0.1)


def test_everything_but_the_weights_is_the_bases(folder: Path) -> None:
    policy, tuned = folder / "policy", folder / "tuned"
    for path in policy.iterdir():
        if path.suffix != ".safetensors":
            assert (tuned / path.name).read_bytes() == path.read_bytes()
    digests = {tokenizer_digest(AutoTokenizer.from_pretrained(each)) for each in (policy, tuned)}
    assert len(digests) == 1
    base, result = find_model(str(policy)), find_model(str(tuned))
    assert (base.shapes, base.formats) == (result.shapes, result.formats)
    check_adapter(tuned / "adapter", base, str(policy))
    assert {path.name for path in tuned.iterdir()} - {path.name for path in policy.iterdir()} == {
        "training.json",
        "learning_curve.svg",
        "adapter",
    }
    assert not [path for path in folder.iterdir() if path.name.startswith(".")], "nothing else is left"


def test_the_document_says_what_was_trained_on_what(folder: Path) -> None:
    document = result_of(folder / "tuned")
    assert document["revision"] == find_model(str(folder / "tuned")).revision
    assert document["policy"]["revision"] == find_model(str(folder / "policy")).revision
    assert document["data"]["counts"]["selected"] == 24 and document["data"]["rule"] == "best-per-prompt"
    assert document["data"]["rows"]["trained"] == document["data"]["rows"]["read"] == 24
    assert None not in {document["options"][name] for name in ("learning_rate", "lora_alpha", "max_length", "epochs")}
    source = open_source("data", folder / "trl-tokens", "sft")
    tokens = sum(len(one.columns[0]) for one in examples_of(source, encoder_of(folder / "policy"), 2048, Audit()))
    assert document["metrics"]["tokens"] == 2 * tokens
    assert "<svg" in (folder / "tuned" / document["learning_curve"]).read_text()
    (warning,) = document["warnings"]
    assert warning.startswith("off-policy: 100% of the data was sampled by a-policy@abcd, and the policy to train is")


def test_a_finished_run_returns_at_once_and_another_one_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_run", None)
    again = train(options(folder))
    assert again.pop("already_finished") is True
    assert again == result_of(folder / "tuned")
    with pytest.raises(TrainingError, match=r"options\.seed: 0 there, 1 given"):
        train(options(folder, seed=1))
    with pytest.raises(TrainingError, match=r"data\.sha256: "):
        train(options(folder, data=folder / "trl-sft"))
    with pytest.raises(TrainingError, match="holds no model that was trained here"):
        train(options(folder, out=folder / "policy"))


@pytest.mark.parametrize("theirs", ["{}", '{"run": 5}', "[]"])
def test_what_another_program_calls_training_json_is_refused(folder: Path, tmp_path: Path, theirs: str) -> None:
    (tmp_path / "training.json").write_text(theirs)
    with pytest.raises(TrainingError, match="holds no model that was trained here"):
        train(options(folder, out=tmp_path))


def test_the_same_run_gives_the_same_weights(folder: Path, tmp_path: Path) -> None:
    progress: list[Progress] = []
    document = train(options(folder, out=tmp_path / "again"), progress.append)
    assert document["revision"] == result_of(folder / "tuned")["revision"]
    assert [one.step for one in progress] == [0, 1, 2, 3, 4, 5, 6]
    assert {one.steps for one in progress} == {6} and progress[-1].loss is not None


def test_all_weights_can_be_trained(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()  # an empty folder is as good as none
    document = train(options(folder, out=tmp_path / "full", lora=False, learning_rate=3e-3, eval_share=0.25))
    assert loss_of(tmp_path / "full", folder) < 0.8 * loss_of(folder / "policy", folder)
    assert document["data"]["rows"]["held_out"] == 6 and document["data"]["rows"]["trained"] == 18
    assert document["metrics"]["last_eval_loss"] < document["metrics"]["first_eval_loss"]
    assert not (tmp_path / "full" / "adapter").exists()
    assert find_model(str(tmp_path / "full")).formats == find_model(str(folder / "policy")).formats


def test_pairs_move_the_policy_to_the_chosen(folder: Path, tmp_path: Path) -> None:
    document = train(options(folder, data=folder / "trl-dpo", out=tmp_path / "dpo", method="dpo", epochs=4))
    history = document["history"]
    assert history[0]["loss"] == pytest.approx(0.6931, abs=1e-3), "log 2: tuned and reference policy are one"
    assert history[-1]["loss"] < 0.3 and history[-1]["pair_accuracy"] == 1.0


def test_rows_of_a_file_can_be_held_out(folder: Path, tmp_path: Path) -> None:
    held_out = folder / "trl-sft" / "part-00000.jsonl"
    document = train(options(folder, out=tmp_path / "out", eval_data=held_out, epochs=1))
    assert document["eval_data"]["rows"]["read"] == 24 and document["data"]["rows"]["trained"] == 24
    assert document["metrics"]["last_eval_loss"] == pytest.approx(loss_of(tmp_path / "out", folder), rel=0.05)


def test_a_run_that_diverged_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"diverged: the weight .* try a lower learning rate"):
        train(options(folder, out=tmp_path / "out", learning_rate=1e9))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_and_gone_on_from(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a checkpoint does not fit: the next run goes on from the one before."""
    complete = WorkFolder.complete

    def full(work: Any, checkpoint: Path, seconds: float) -> None:
        if checkpoint.name == "checkpoint-4":
            raise OSError(28, os.strerror(28))
        complete(work, checkpoint, seconds)

    monkeypatch.setattr(WorkFolder, "complete", full)
    with pytest.raises(TrainingError, match="no room is left on the disk"):
        train(options(folder, out=tmp_path / "out", save_steps=2))
    monkeypatch.setattr(WorkFolder, "complete", complete)
    progress: list[Progress] = []
    document = train(options(folder, out=tmp_path / "out", save_steps=2), progress.append)
    assert [one.step for one in progress] == [2, 3, 4, 5, 6]
    assert document["revision"] == result_of(folder / "tuned")["revision"]


def test_too_little_room_is_told_before_anything_is_trained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(TrainingError, match=r"needs about .* MiB .* 0 MiB free"):
        train(options(folder, out=tmp_path / "out"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"method": "ppo"}, ConfigError, "method: 'ppo' given; allowed are sft, dpo"),
        ({"batch_size": 0}, ConfigError, "batch_size: 0 given"),
        ({"learning_rate": float("nan")}, ConfigError, "learning_rate: nan given"),
        (
            {"per_device_train_batch_size": 3},
            ConfigError,
            "per_device_train_batch_size: 3 given; each device has 8 rows",
        ),
        ({"max_length": 9999}, ConfigError, "max_length: 9999 given; the policy's context is 2048"),
        ({"max_length": 4}, TrainingError, r"no row to train on, of 24 \(24 too_long\)"),
        ({"policy": "nowhere"}, StartupError, "no such directory"),
        ({"eval_share": 0.1, "eval_data": Path("x")}, ConfigError, "choose one"),
    ],
)
def test_what_cannot_be_done_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        train(options(folder, out=tmp_path / "out", **changes))
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_model_that_cannot_be_loaded_is_told(folder: Path, tmp_path: Path) -> None:
    broken = tiny_models.save_policy(tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text()) | {"model_type": "unheard-of"}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(StartupError, match=r"cannot be loaded|cannot load it"):
        train(options(folder, out=tmp_path / "out", policy=broken))

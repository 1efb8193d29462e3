"""Both benchmarks from end to end, with models that are made in a moment: every step is the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_models import save_decoder_reward, save_policy

pytestmark = [pytest.mark.models, pytest.mark.slow, pytest.mark.long]
ROOT = Path(__file__).parent.parent.parent
SIZES = ["--train", "12", "--held-out", "6", "--n", "8", "--samples", "2", "--kl-questions", "4"]


def length(*, prompt: str, completion: str, context: Mapping[str, str]) -> float:
    """The gold of the test."""
    return float(len(completion) < int(context["most"]))


def _arguments(folder: Path) -> list[str]:
    policy, reward = save_policy(folder / "policy"), save_decoder_reward(folder / "reward")
    for name, count in (("train", 12), ("test", 6)):
        lines = [{"prompt": f"{name} {number}?", "reward_context": {"most": "20"}} for number in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        *("--policy", str(policy), "--reward", str(reward), "--gold", "tests.arms.test_scripts:length"),
        *("--train-prompts", str(folder / "train.jsonl"), "--held-out-prompts", str(folder / "test.jsonl")),
        *("--work", str(folder / "work"), "--out", str(folder / "out.json"), "--table", str(folder / "out.md")),
        *("--max-tokens", "64", "--serve", "policy.kv_cache_memory_bytes=67108864", *SIZES),
    ]


def _run(script: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    environment = os.environ | {"TORCH_COMPILE_DISABLE": "1"}
    stdout = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment).stdout
    document: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return document


def test_the_round_trip(tmp_path: Path) -> None:
    arguments = _arguments(tmp_path)
    document = _run("round_trip.py", *arguments, "--seeds", "2")
    assert document["sampled"]["questions"] == 6
    assert document["sampled"]["answers_each"] == 2
    assert document["greedy"]["answers_each"] == 1
    assert len(document["sampled"]["gold"]["by_seed"]) == 2
    assert document == json.loads((tmp_path / "out.json").read_text())
    assert "| tuned − control |" in (tmp_path / "out.md").read_text()

    again = _run("round_trip.py", *arguments, "--seeds", "2")  # every part is there
    assert again["sampled"] == document["sampled"]
    assert again["seconds"] == document["seconds"]


def test_reward_against_kl(tmp_path: Path) -> None:
    weak = save_decoder_reward(tmp_path / "weak", initializer_range=0.3)
    document = _run(
        "kl_reward.py",
        *_arguments(tmp_path),
        *("--seeds", "1", "--weak-reward", str(weak), "--plot", str(tmp_path / "out.svg")),
        *("--recipe", "rl_stops=1,2", "--recipe", "rl_batch=8", "--recipe", "rl_group=4"),
    )
    names = [arm["name"] for arm in document["arms"] if arm["proxy_model"] == "strong"]
    assert names[:8] == ["base", *(f"best-of-{n}" for n in range(2, 9))]
    assert names[8:13] == ["best per prompt", "random per prompt", "top-k overall", "random-k overall", "DPO"]
    assert names[13:] == ["GRPO, 1 steps", "GRPO, 2 steps"]
    of_weak = [arm["name"] for arm in document["arms"] if arm["proxy_model"] == "weak"]
    assert of_weak == [*names[:8], *names[13:]]
    tuned = [arm for arm in document["arms"] if arm["kl_method"] == "full-vocabulary"]
    assert all(arm["kl_nats"] >= 0 and arm["train_tokens"] > 0 for arm in tuned)  # a step or two hardly move a policy
    assert next(arm for arm in tuned if arm["name"] == "best per prompt")["kl_nats"] > 0
    assert (tmp_path / "out.svg").stat().st_size > 10_000
    assert "**The proxy is the weak reward model**" in (tmp_path / "out.md").read_text()

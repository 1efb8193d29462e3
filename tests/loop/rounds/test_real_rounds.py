"""A round with everything real: vLLM samples a tiny policy, TRL trains it, and the tuned one is served and measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_models import save_policy

REWARD = """
def high(prompt, completion, context):
    return sum(character.isalpha() for character in completion) / max(1, len(completion))
"""


@pytest.mark.long
@pytest.mark.models
def test_a_round_of_a_tiny_policy(tmp_path: Path) -> None:
    save_policy(tmp_path / "policy")
    (tmp_path / "rewards.py").write_text(REWARD)
    for name in ("train", "held-out"):
        lines = [json.dumps({"prompt": f"{name} {number}"}) for number in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    words = [
        sys.executable,
        "-m",
        "bon_server.cli",
        "rounds",
        "--policy",
        "policy",
        "--reward",
        "function:rewards:high",
    ]
    words += ["--prompts", "train.jsonl", "--held-out", "held-out.jsonl", "--out", "run", "--rounds", "1", "-n", "8"]
    words += ["--max-tokens", "96", "--temperature", "1.0", "--train", "learning_rate=1e-3", "--train", "epochs=4"]
    words += [
        "--set",
        "policy.dtype=float32",
        "--set",
        "policy.kv_cache_memory_bytes=67108864",
        "--min-distinct",
        "0",
        "--json",
    ]
    done = subprocess.run(words, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    first, tuned = told["rounds"]
    assert tuned["selected"]["selected"] >= 4
    assert tuned["evaluation"]["kl_nats"]["texts"] == 12
    assert tuned["evaluation"]["kl_nats"]["mean"] > 0.01
    assert tuned["evaluation"]["held_out"]["sampled"]["entropy_nats"]["mean"] > 0
    assert first["evaluation"]["held_out"]["greedy"]["prompts"] == 12
    assert (tmp_path / "run/round-01/policy/model.safetensors").exists()
    assert told["best"]["policy"] in (str(tmp_path / "policy"), "round-01/policy")

"""docs/migrating.md, run as it stands there, on files in the formats that it names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.offline.importing.import_files import (
    Sample,
    open_instruct,
    openrlhf,
    trl_grpo,
    verl,
    write_lines,
    write_parquet,
)
from tests.offline.rescore.rescoring import synthetic_reward

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "migrating.md"
SAMPLES = [
    Sample(f"prompt {prompt}", f"answer {prompt}.{index}", (7 * prompt + 3 * index) % 5 / 4)
    for prompt in range(6)
    for index in range(4)
]


def sections() -> list[str]:
    """What is to be pasted, of each framework."""
    parts = PAGE.read_text(encoding="utf-8").split("\n## ")
    found = ["\n".join(re.findall(r"^```bash\n(.*?)^```", part, re.DOTALL | re.MULTILINE)) for part in parts]
    return [part for part in found if part]


def pasted(commands: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """How they end in a shell in this folder."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'clients' / 'python'}",
        "POLICY": "synthetic:tokens=5",
        "REWARD": "synthetic",
    }
    words = ["bash", "-ec", commands]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)


def write_inputs(folder: Path) -> None:
    """What the frameworks would have left."""
    write_lines(folder / "generate.jsonl", [{"input": one.prompt, "output": one.text} for one in SAMPLES])
    write_lines(folder / "rm.jsonl", [openrlhf(one) for one in SAMPLES])
    write_lines(folder / "prompts.jsonl", [{"prompt": f"prompt {number}"} for number in range(6)])
    (folder / "grpo" / "completions").mkdir(parents=True)
    write_parquet(folder / "grpo" / "completions" / "completions_00001.parquet", [trl_grpo(one) for one in SAMPLES])
    scores = [open_instruct(one) | {"score": {"org/rm-a": -one.reward, "org/rm-b": 2.5 * one.reward}}  # type: ignore[operator]
              for one in SAMPLES]  # fmt: skip
    write_lines(folder / "scores.jsonl", scores)
    without = [{name: value for name, value in one.items() if "score" not in name} for one in scores]
    write_lines(folder / "completions.jsonl", without)
    (folder / "rollouts").mkdir()
    for step in (1, 2):
        some = [verl(one) | {"step": step, "acc": one.reward == 1.0} for one in SAMPLES[step - 1 :: 2]]
        write_lines(folder / "rollouts" / f"{step}.jsonl", some)


def first_best(of: dict[str, float]) -> set[str]:
    """Of each prompt the first of the highest."""
    best: dict[str, str] = {}
    for one in SAMPLES:
        there = best.setdefault(one.prompt, one.text)
        if of[one.text] > of[there]:
            best[one.prompt] = one.text
    return set(best.values())


def lines(folder: Path) -> list[Any]:
    return [json.loads(text) for path in sorted(folder.glob("part-*")) for text in path.read_text().splitlines()]


def completions(folder: Path, name: str = "completion") -> set[str]:
    found = [one[name] for one in lines(folder)]
    return {one if isinstance(one, str) else one[0]["content"] for one in found}


@pytest.mark.slow
def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    with ThreadPoolExecutor(2) as shells:  # none needs what another one makes
        for done in shells.map(partial(pasted, folder=tmp_path), sections()):
            assert done.returncode == 0, done.stdout + done.stderr
    by_reward = first_best({one.text: one.reward or 0.0 for one in SAMPLES})
    by_synthetic = first_best({one.text: synthetic_reward(one.text) for one in SAMPLES})
    assert len(by_reward) == 6 and by_reward != by_synthetic
    for name in ("openrlhf-scored-best", "grpo-best", "verl-best"):
        assert completions(tmp_path / name) == by_reward, name
    assert completions(tmp_path / "openrlhf-best") == by_synthetic
    assert completions(tmp_path / "openrlhf-pairs", "chosen") == by_reward
    assert completions(tmp_path / "tulu-pairs", "chosen") == by_reward  # 2.5 r - r
    assert completions(tmp_path / "tulu-best-by-a") == first_best({one.text: -(one.reward or 0.0) for one in SAMPLES})
    assert completions(tmp_path / "tulu-fresh-pairs", "chosen") == by_synthetic
    assert completions(tmp_path / "verl-right") == {one.text for one in SAMPLES if one.reward == 1.0}
    assert len(lines(tmp_path / "verl-control")) == len(lines(tmp_path / "verl-best")) == 6
    assert len(lines(tmp_path / "trl-best")) == 7  # of six prompts and a question
    assert len(lines(tmp_path / "trl-tokens")) == 14
    manifest = json.loads((tmp_path / "openrlhf-best" / "manifest.json").read_text())
    assert manifest["reward_models"][0]["id"] == "synthetic" and manifest["filters"]["reward"] == "rm"


def test_every_command_of_the_table_is_on_the_page() -> None:
    for verb in ("log import", "rescore", "select", "serve", "harvest", "ask", "evaluate curve"):
        assert f"\nbon {verb} " in "\n".join(["", *sections()]), verb

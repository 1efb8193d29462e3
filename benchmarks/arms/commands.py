"""`bon` and its server as a user runs them, one after the other."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.arms.setting import Setting
from bon_server.loop.server_process import serving

SEQUENCES_AT_ONCE = 192
"""More gain nothing on a CPU; `--serve policy.max_num_seqs=…` on a GPU."""


def python(module: str, *arguments: str) -> str:
    """Runs `python -m module …`; its stderr goes to ours. Returns its stdout; raises CalledProcessError."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def bon(*arguments: str) -> dict[str, Any]:
    """Runs `bon … --json`. Returns its document; raises CalledProcessError."""
    document: dict[str, Any] = json.loads(python("bon_server.cli", *arguments, "--json"))
    return document


@dataclass(frozen=True)
class Run:
    """How each prompt is answered."""

    n: int
    temperature: float
    """0: the one likeliest answer."""


def harvest(
    setting: Setting,
    policy: str,
    rewards: Mapping[str, str],
    prompts: Path,
    folder: Path,
    runs: Sequence[Run],
    seed: int,
) -> dict[str, Any]:
    """Answers all prompts in each way, through a server of its own, into the log `folder/log`.

    rewards: reward models by name; with several, each answer keeps the reward of each. seed: of the sampling engine.
    What an interrupted call has logged is not asked for again.
    """
    arguments = ["--policy", policy, "--log", str(folder / "log"), "--set", f"policy.seed={seed}"]
    arguments += ["--set", f"policy.max_num_seqs={SEQUENCES_AT_ONCE}", *setting.serve]
    for name, model in rewards.items():
        arguments += ["--reward", f"{name}={model}"]
    (folder / "ready.json").unlink(missing_ok=True)
    with serving(arguments, folder) as address:
        return {"harvests": [_ask(address, prompts, run, setting) for run in runs]}


def _ask(address: str, prompts: Path, run: Run, setting: Setting) -> dict[str, Any]:
    document = bon(
        *("harvest", str(prompts), "--target", address, "-n", str(run.n), "--temperature", str(run.temperature)),
        *("--max-tokens", str(setting.max_tokens), "--concurrency", str(max(1, SEQUENCES_AT_ONCE // run.n))),
    )
    if document["failed"]:
        raise RuntimeError(f"{document['failed']} of {document['requests']} prompts have no answer")
    return document


def end_at_sigterm() -> None:
    """SIGTERM ends the benchmark as Ctrl-C does, so that what it started is ended too."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)

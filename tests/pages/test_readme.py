"""Every command of README.md runs as it stands there, with synthetic models in the place of real ones."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.pages.pasting import ROOT, RUN_S, environment, examples, pasted, run_python

PAGE = ROOT / "README.md"
MODELS = {
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": "synthetic",
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": "synthetic",
}
"""Models that the page names, and what stands for them here."""
MOST_LINES = 130


def with_synthetic_models(command: str) -> str:
    for real, synthetic in MODELS.items():
        assert real in command
        command = command.replace(real, synthetic)
    return command


@pytest.mark.slow
def test_the_commands_run(tmp_path: Path, port: str) -> None:
    run_the_commands(tmp_path, port, environment(tmp_path))


def run_the_commands(tmp_path: Path, port: str, variables: Mapping[str, str]) -> None:
    """`variables`: environment of the shell."""
    blocks = [text.replace("50051", port) for _, text in examples(PAGE)]
    make, serve, *others = blocks
    assert [line.split("#")[0].strip() for line in make.splitlines()] == ["make demo", "make test"]
    ready = tmp_path / "ready"
    # Settings from the environment change nothing in the command itself.
    own = {"BON_LISTEN_PORT": port, "BON_LISTEN_METRICS_PORT": "0", "BON_LISTEN_READY_FILE": str(ready)}
    with (tmp_path / "said").open("w") as said:
        words = ["bash", "-c", f"exec {with_synthetic_models(serve)}"]
        server = subprocess.Popen(words, cwd=tmp_path, env={**variables, **own}, stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + RUN_S
            while not ready.exists():
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "said").read_text()
                time.sleep(0.05)
            ask, python, select = others
            # `bon ask` on the page asks the default port
            assert pasted(f"{ask.strip()} --target 127.0.0.1:{port}", tmp_path, variables).count("16 of 16 scored") == 1
            assert run_python(python, tmp_path, variables).strip()
            pasted(select, tmp_path, variables)
        finally:
            server.terminate()
            server.wait(RUN_S)
    assert (tmp_path / "training-set" / "part-00000.jsonl").read_text().count("\n") == 1


def inline_commands() -> Iterator[str]:
    for code in re.findall(r"`([^`\n]+)`", PAGE.read_text(encoding="utf-8")):
        if code.startswith(("make ", "pip ")):
            yield code


def test_make_knows_its_targets(tmp_path: Path) -> None:
    commands = ["make demo", "make test", *(code for code in inline_commands() if code.startswith("make "))]
    assert len(commands) >= 4
    for command in commands:
        words = shlex.split(command.replace("<that URL>", "https://index.example/simple"))
        done = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=RUN_S)
        assert done.returncode == 0, (command, done.stderr)


def test_what_pip_installs_is_there() -> None:
    (command,) = (code for code in inline_commands() if code.startswith("pip "))
    project = tomllib.loads((ROOT / shlex.split(command)[-1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {re.split(r"\W", need)[0] for need in project["dependencies"]} == {"grpcio", "protobuf"}


def test_it_is_short() -> None:
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= MOST_LINES

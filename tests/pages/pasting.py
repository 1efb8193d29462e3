"""Examples of a page, and a shell and a server to run them with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN_S = 120.0
"""To run one example, on a busy machine."""


def examples(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block that names a language, in the order of the page."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def environment(folder: Path) -> dict[str, str]:
    """Of a shell in which `bon` and `.venv/bin/bon` are this checkout's, without settings of another server."""
    commands = folder / ".venv" / "bin"
    commands.mkdir(parents=True, exist_ok=True)
    (commands / "bon").write_text(f'#!/bin/sh\nexec {sys.executable} -m bon_server.cli "$@"\n', encoding="utf-8")
    (commands / "bon").chmod(0o755)
    ours = {name: value for name, value in os.environ.items() if not name.startswith("BON_")}
    return ours | {
        "PATH": f"{commands}:{Path(sys.executable).parent}:{ours['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'clients' / 'python'}",
        "COLUMNS": "200",
    }


def pasted(script: str, folder: Path, variables: Mapping[str, str]) -> str:
    """What a shell prints for a script that succeeds."""
    words = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(words, cwd=folder, env=dict(variables), capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_python(script: str, folder: Path, variables: Mapping[str, str]) -> str:
    """What a Python program prints that succeeds."""
    words = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(words, cwd=folder, env=dict(variables), capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

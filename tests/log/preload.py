"""Processes with a C file of this folder preloaded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def compiled(name: str, folder: Path) -> Path:
    """The shared library made of `name`.c."""
    library = folder / f"{name}.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, HERE / f"{name}.c", "-ldl"], check=True, timeout=60)
    return library


def run_module(library: Path, module: str, *arguments: str | Path, **environment: str) -> bytes:
    """What `python -m MODULE ARGUMENTS` prints to stdout; raises CalledProcessError when it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    everything: Mapping[str, str] = os.environ | environment | {"LD_PRELOAD": str(library)}
    return subprocess.run(command, cwd=ROOT, env=everything, stdout=subprocess.PIPE, check=True, timeout=60).stdout

"""The committed stubs are what the proto file generates."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / "clients" / "python"
PROTO = "bon/v1/bon.proto"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh set of stubs."""
    out = tmp_path_factory.mktemp("stubs")
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "protos"]
    command += [f"--python_out={out}", f"--mypy_out=quiet:{out}", f"--grpc_python_out={out}"]
    command += [f"--mypy_grpc_out=quiet:{out}", f"protos/{PROTO}"]
    # protoc finds the mypy plugins on the path, where they are beside this interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PATH": path}, timeout=60)
    return out


def test_committed_stubs_are_fresh(generated: Path) -> None:
    fresh = {path.relative_to(generated): path.read_bytes() for path in generated.rglob("bon_pb2*")}
    committed = {path.relative_to(PYTHON): path.read_bytes() for path in PYTHON.rglob("bon_pb2*.py*")}
    committed = {path: content for path, content in committed.items() if "__pycache__" not in path.parts}
    assert len(fresh) == 4
    stale = sorted(str(path) for path in fresh.keys() | committed.keys() if fresh.get(path) != committed.get(path))
    assert stale == [], "run `make proto`"

"""`import bon` needs grpc and protobuf, and nothing else that is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import bon

_SCRIPT = """
import sys
from importlib.abc import MetaPathFinder

class OnlyClient(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        allowed = top in sys.stdlib_module_names or top in {"bon", "grpc", "typing_extensions"}
        if not allowed and name != "google" and not name.startswith(("google.protobuf", "google._upb")):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, OnlyClient())
import bon, bon.v1.bon_pb2_grpc
assert not {"bon_server", "torch", "numpy", "rich"} & sys.modules.keys()
"""


def test_needs_only_grpc_and_protobuf() -> None:
    root = Path(bon.__file__).parents[1]
    subprocess.run([sys.executable, "-c", _SCRIPT], check=True, cwd=root, timeout=60)

"""Imports go one way only, and what is light stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bon_server"

LAYERS = [
    ["__init__"],
    ["types"],
    ["errors", "protocols", "supervision", "numbers", "terminal"],
    ["security", "config_sources", "options"],
    ["config", "specs"],
    ["selection", "estimators", "stopping"],
    ["pruning", "scores"],
    ["tokenizer", "weights"],
    ["engine"],
    ["operator_code"],
    ["policy", "reward", "log"],
    ["candidates"],
    ["best_of_n"],
    ["serving", "offline", "evaluate"],
    ["ask", "harvest", "doctor", "probe", "server_process"],
    ["rounds", "soak"],
    ["demo"],
    ["cli"],
]
"""A module imports from its own entry and from earlier lines, never from its neighbours or from later lines."""

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).with_suffix("").parts[0], path


def _imports(path: Path) -> Iterator[str]:
    """Parts of the package that a file imports, lazily or not."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "bon_server":
            names = [f"bon_server.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        else:
            continue
        for name in names:
            if name.startswith("bon_server."):
                part = name.split(".")[1]
                yield part if part in LEVEL else "__init__"


def test_every_module_has_a_layer() -> None:
    assert {part for part, _ in _modules()} <= set(LEVEL)


def test_imports_go_one_way() -> None:
    backwards = [
        f"{path.relative_to(ROOT)} imports {imported}"
        for part, path in _modules()
        for imported in _imports(path)
        if imported != part and LEVEL[imported] >= LEVEL[part]
    ]
    assert not backwards


def test_a_server_without_models_needs_no_engine() -> None:
    """Synthetic models, reward functions, and all log tools run without torch, transformers and vLLM."""
    modules = [
        "cli",
        "serving.server",
        "policy.synthetic",
        "reward.synthetic",
        "reward.function",
        "offline.select",
        "evaluate.curve",
    ]
    script = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module('bon_server.' + m)\n"
    script += "heavy = {'torch', 'transformers', 'vllm'} & set(sys.modules)\nassert not heavy, heavy"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_the_client_needs_only_grpc_and_protobuf() -> None:
    script = "import bon, sys\nheavy = {'bon_server', 'numpy', 'msgspec', 'pyarrow', 'torch'} & set(sys.modules)"
    script += "\nassert not heavy, heavy"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)

"""No model brings code: every place that loads one says so to the library, and none unpickles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "bon_server"


def calls(*names: str) -> Iterator[tuple[str, ast.Call]]:
    """Calls of methods or functions of these names, with where they are."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def says(call: ast.Call, **wanted: bool) -> bool:
    """Whether the call has these arguments, itself or among others in a `**` of its file."""
    given = {each.arg: each.value for each in call.keywords}
    values = {name: value.value for name, value in given.items() if name and isinstance(value, ast.Constant)}
    return None in given or all(values.get(name) is value for name, value in wanted.items())


def test_loading_by_kind_of_model_never_trusts_its_code() -> None:
    found = [
        (where, call) for where, call in calls("from_pretrained", "from_config") if "Auto" in ast.unparse(call.func)
    ]
    assert len(found) >= 8
    assert not [where for where, call in found if not says(call, trust_remote_code=False)]


def test_weights_are_safetensors() -> None:
    """GGUF holds no pickles either."""
    found = [(where, call) for where, call in calls("from_pretrained") if "AutoModel" in ast.unparse(call.func)]
    assert len(found) >= 4
    gguf = [where for where, call in found if "gguf_file" in {each.arg for each in call.keywords}]
    unsafe = [where for where, call in found if not says(call, use_safetensors=True) and where not in gguf]
    assert len(gguf) <= 1 and not unsafe


def test_engines_are_told_the_same() -> None:
    for engine in ("policy", "reward"):
        text = (PACKAGE / "models" / "vllm" / f"{engine}_engine.py").read_text(encoding="utf-8")
        assert '"trust_remote_code": False,' in text and '"load_format": "safetensors",' in text


def test_nothing_is_unpickled() -> None:
    loads = [where for where, call in calls("load", "loads") if ast.unparse(call.func).startswith(("pickle", "torch."))]
    assert not loads

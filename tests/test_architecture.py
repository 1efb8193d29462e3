"""Imports go one way only, light things stay light, every package has a page, and no package outgrows its ceiling."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bon_server"

LAYERS: dict[str, list[list[str]]] = {
    "": [
        ["__init__"],
        ["core"],
        ["system"],
        ["config", "estimators"],
        ["operator_code"],
        ["models", "log"],
        ["serving", "offline", "evaluate"],
        ["loop"],
        ["demo"],
        ["cli"],
    ],
    "core": [
        ["types", "errors", "selection"],
        ["protocols", "stopping", "scores", "pruning"],
        ["candidates"],
        ["best_of_n"],
    ],
    "system": [["files", "lock", "child_process", "memory", "supervision", "telemetry", "terminal"]],
    "config": [["numbers", "options", "security"], ["sources", "specs"], ["settings"]],
    "operator_code": [["guard", "messages"], ["worker"], ["pool"]],
    "estimators": [
        ["clusters", "diversity", "kl_policy", "order_statistics", "soft"],
        ["kl_best_of_n", "overoptimisation", "win_rate"],
        ["__init__"],
    ],
    "models": [
        ["dtype", "tokenizer", "weights"],
        ["policy", "reward"],
        ["memory_plan"],
        ["vllm"],
        ["starting"],
    ],
    "models.policy": [["adapter", "checkpoints", "prompts", "reference", "synthetic"]],
    "models.reward": [
        ["pairs", "prompt_states", "synthetic", "ensemble"],
        ["classifier", "function"],
        ["pooling", "transformers"],
    ],
    "models.vllm": [
        ["ending", "grammar", "stat_logger"],
        ["engine", "grammar_gate", "grammar_trial", "shared_grammars"],
        ["engine_process"],
        ["policy_engine", "reward_engine"],
        ["policy", "reward"],
        ["successor"],
    ],
    "log": [
        ["record", "catalog"],
        ["published"],
        ["segments"],
        ["spool"],
        ["feedback"],
        ["scores"],
        ["read"],
        ["publish"],
        ["remove"],
        ["seal"],
        ["verify"],
    ],
    "log.segments": [["columns", "where"], ["files"], ["reader", "feedback_columns"]],
    "log.spool": [["clock", "database"], ["log_files", "lookup"], ["writer"], ["upkeep"], ["spool"], ["pieces"]],
    "log.scores": [["files"], ["joined"]],
    "log.read": [["reader"], ["feedback", "snapshot"], ["stats"]],
    "log.publish": [["store"], ["publishing"], ["publisher"]],
    "log.remove": [["rewrite"], ["erase_published", "expire"], ["erase"]],
    "log.seal": [["process"], ["sealing"], ["sealer"]],
    "log.verify": [["feedback", "rows", "scores"], ["verify"]],
    "serving": [
        ["status", "content", "policies"],
        ["auth"],
        ["admission"],
        ["attempt", "telemetry"],
        ["rpc"],
        ["lifecycle"],
    ],
    "serving.auth": [["watched"], ["keys"], ["access", "guards"]],
    "serving.admission": [["deadlines", "descriptors", "fair_queue", "quotas", "receiving"], ["permits"]],
    "serving.telemetry": [["collectors", "endpoint", "log_lines", "metrics", "tracing"]],
    "serving.rpc": [["builtin", "respond", "validate"], ["feedback", "parse"], ["service"]],
    "serving.lifecycle": [
        ["accepting", "listener", "ports", "restarts", "weights_watcher"],
        ["health"],
        ["server"],
        ["signals"],
    ],
    "offline": [["differences", "select"], ["rescore", "importing", "train"]],
    "offline.select": [
        ["executors", "manifest", "rows"],
        ["formats", "output_folder", "rules"],
        ["options"],
        ["plan"],
        ["eligible", "inputs"],
        ["gathering", "writing"],
        ["choosing", "fetching"],
        ["exporting"],
        ["select"],
    ],
    "offline.rescore": [["rescorable"], ["rescore"]],
    "offline.importing": [["imported", "line"], ["formats", "gathering", "rows"], ["options"], ["importers"]],
    "offline.train": [
        ["curve", "encoding", "model_directory", "options", "sources", "work_folder"],
        ["defaults", "examples"],
        ["plan", "trainer"],
        ["train"],
    ],
    "evaluate": [
        ["table"],
        ["arrow_columns"],
        ["reading"],
        ["curve_sums", "kl"],
        ["curve", "compare"],
        ["headroom"],
        ["report"],
    ],
    "evaluate.report": [["charts", "sample"], ["likes"], ["page"], ["report"]],
    "loop": [["server_process", "harvest"], ["rounds", "soak"]],
    "loop.harvest": [["prompts"], ["lines"], ["loop"], ["dry_run", "progress"]],
    "loop.rounds": [["evaluation", "folder", "options"], ["kl"], ["steps"], ["run"]],
    "loop.soak": [["ledger", "options"], ["calls", "checks"], ["seen", "traffic"], ["run"]],
    "demo": [["policy_model", "problems", "reward_model"], ["samples"], ["evaluate"], ["run", "train_reward"]],
    "cli": [
        ["answers", "examine", "options", "probe", "show"],
        [
            "asking",
            "bench",
            "demo",
            "evaluate",
            "keys",
            "log",
            "offline",
            "rounds",
            "settings",
            "training",
        ],
        ["rescore", "serving"],
        ["__init__"],
        ["__main__"],
    ],
}
"""Package → its modules and subpackages. Each imports from itself and from earlier lines, never from its neighbours.

A package's `__init__` is listed where it holds code.
"""

EXCEPTIONS = {
    # Observations know the spool, and their columns know them. The unification of the two streams removes this.
    ("log.segments.feedback_columns", "log.feedback"),
}
"""(importer, imported) that go the wrong way. An entry that is no longer needed fails the test."""

CEILINGS: dict[str, int] = {
    "core": 1_400,
    "system": 800,
    "config": 900,
    "operator_code": 850,
    "estimators": 950,
    "models": 4_050,
    "models.vllm": 1_550,
    "models.reward": 1_200,
    "models.policy": 700,
    "log": 7_450,
    "log.spool": 1_600,
    "log.segments": 1_050,
    "log.read": 850,
    "log.seal": 750,
    "log.remove": 900,
    "log.verify": 800,
    "log.publish": 650,
    "serving": 5_400,
    "serving.rpc": 1_300,
    "serving.lifecycle": 1_300,
    "serving.telemetry": 900,
    "offline": 6_500,
    "offline.select": 3_300,
    "offline.train": 1_700,
    "offline.importing": 1_150,
    "evaluate": 2_600,
    "evaluate.report": 900,
    "loop": 3_100,
    "loop.harvest": 950,
    "loop.rounds": 1_100,
    "loop.soak": 1_050,
    "demo": 1_200,
    "cli": 2_200,
}
"""Package → lines of Python that it may have, its subpackages included."""


def _name(path: Path) -> str:
    """Dotted, without `bon_server`; a package's own file ends in `__init__`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
PACKAGES = [name.removesuffix("__init__").removesuffix(".") for name in MODULES if name.endswith("__init__")]


def _resolved(name: str) -> str:
    """The module of the package that `bon_server.…`, perhaps a name within a module, means."""
    parts = name.split(".")[1:]
    while parts:
        for candidate in (".".join(parts), ".".join([*parts, "__init__"])):
            if candidate in MODULES:
                return candidate
        parts.pop()
    return "__init__"


def _imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, at once or lazily."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "bon_server":
                yield _resolved(name)


def _foreign(path: Path) -> Iterator[str]:
    """Other libraries' modules that a file imports, each with the packages that it is in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for parts in (name.split(".") for name in names):
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


IMPORTS = {name: sorted(set(_imports(path))) for name, path in MODULES.items()}


def _entry(module: str, package: str) -> str | None:
    """The part of `package` that `module` is in or is; None when it is elsewhere."""
    prefix = f"{package}." if package else ""
    return module.removeprefix(prefix).split(".")[0] if module.startswith(prefix) else None


def _backwards(package: str) -> Iterator[tuple[str, str]]:
    """Imports within `package` that go from one entry to another that is not on an earlier line."""
    level = {name: level for level, names in enumerate(LAYERS[package]) for name in names}
    level.setdefault("__init__", -1)
    for importer, imported in ((a, b) for a, names in IMPORTS.items() for b in names):
        source, target = _entry(importer, package), _entry(imported, package)
        if source is not None and target is not None and source != target and level[target] >= level[source]:
            yield importer, imported


def _is_in(module: str, package: str) -> bool:
    return module.startswith(f"{package}.")


def test_every_package_has_layers() -> None:
    assert set(LAYERS) == set(PACKAGES)


@pytest.mark.parametrize("package", LAYERS)
def test_every_module_has_a_layer(package: str) -> None:
    entries = {entry for module in MODULES if (entry := _entry(module, package)) is not None}
    listed = [name for names in LAYERS[package] for name in names]
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) | {"__init__"} == entries


@pytest.mark.parametrize("package", LAYERS)
def test_imports_go_one_way(package: str) -> None:
    backwards = [f"{a} imports {b}" for a, b in _backwards(package) if (a, b) not in EXCEPTIONS]
    assert not backwards


def test_every_exception_is_needed() -> None:
    assert {pair for package in LAYERS for pair in _backwards(package)} >= EXCEPTIONS


@pytest.mark.parametrize(
    ("library", "allowed"),
    [("vllm", ("models.vllm.", "demo.samples")), ("bon.v1", ("serving.rpc.", "loop.", "demo.", "cli."))],
)
def test_a_library_stays_in_its_room(library: str, allowed: tuple[str, ...]) -> None:
    """An upgrade of vLLM, or a change of the protocol, is looked for in these modules only."""
    found = {name for name, path in MODULES.items() if library in set(_foreign(path))}
    assert not [name for name in found if not name.startswith(allowed)]


@pytest.mark.parametrize("package", ["offline", "evaluate"])
def test_the_log_is_read_without_the_server(package: str) -> None:
    reached = {b for a, names in IMPORTS.items() if _is_in(a, package) for b in names}
    waiting = list(reached)
    while waiting:
        further = set(IMPORTS[waiting.pop()]) - reached
        reached |= further
        waiting += further
    assert not [module for module in reached if _is_in(module, "serving")]


def test_a_server_without_models_needs_no_engine() -> None:
    """Synthetic models, reward functions, and all log tools run without torch, transformers and vLLM."""
    modules = [
        "cli",
        "serving.lifecycle.server",
        "models.policy.synthetic",
        "models.reward.synthetic",
        "models.reward.function",
        "offline.select.select",
        "evaluate.curve",
    ]
    script = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module('bon_server.' + m)\n"
    script += "heavy = {'torch', 'transformers', 'vllm'} & set(sys.modules)\nassert not heavy, heavy"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_the_client_needs_only_grpc_and_protobuf() -> None:
    script = "import bon, sys\nheavy = {'bon_server', 'numpy', 'msgspec', 'pyarrow', 'torch'} & set(sys.modules)"
    script += "\nassert not heavy, heavy"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


@pytest.mark.parametrize("package", [name for name in PACKAGES if name])
def test_every_package_has_a_page(package: str) -> None:
    """Its docstring says what lives there; one line would only repeat the name."""
    page = ast.get_docstring(ast.parse(MODULES[f"{package}.__init__"].read_text(encoding="utf-8"))) or ""
    assert len(page.splitlines()) >= 3


@pytest.mark.parametrize("package", CEILINGS)
def test_no_package_outgrows_its_ceiling(package: str) -> None:
    files = [path for name, path in MODULES.items() if _is_in(name, package)]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    assert lines <= CEILINGS[package], (
        f"{package} has {lines} lines, its ceiling is {CEILINGS[package]}. Make it smaller, or raise the ceiling with "
        "a sentence in the commit that says what users get for the lines"
    )


def test_every_top_level_package_has_a_ceiling() -> None:
    assert {name for name in PACKAGES if name and "." not in name} <= set(CEILINGS)

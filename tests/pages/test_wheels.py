"""Both wheels, built and installed with nothing but what they declare, run the README's lines with synthetic models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import Distribution, distribution, distributions, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import tiny_models
from tests.pages import test_readme
from tests.pages.pasting import ROOT, RUN_S, environment

pytestmark = pytest.mark.slow

BLOCKER = """
import json, sys, pathlib
ABSENT = frozenset(json.loads(pathlib.Path(__file__).with_name("absent.json").read_text()))

class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent)
"""
"""`sitecustomize`: modules of undeclared distributions cannot be imported, as in an environment without them."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with both wheels, and a `sitecustomize` that hides all that they do not ask for."""
    folder = tmp_path_factory.mktemp("wheels")
    for project in (ROOT / "clients" / "python", ROOT):
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", project)
    wheels = sorted((folder / "dist").glob("*.whl"))
    assert [wheel.name.partition("-")[0] for wheel in wheels] == ["bon_client", "bon_server"]
    site = folder / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, *wheels)
    (site / "sitecustomize.py").write_text(BLOCKER, encoding="utf-8")
    (site / "absent.json").write_text(json.dumps(sorted(undeclared_modules(site))), encoding="utf-8")
    return site


@pytest.fixture
def variables(installed: Path, tmp_path: Path) -> Mapping[str, str]:
    return environment(tmp_path) | {"PYTHONPATH": str(installed)}


def run(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0, done.stdout + done.stderr


def undeclared_modules(site: Path) -> set[str]:
    """Top-level modules of this environment that the two wheels in a folder, without extras, do not bring."""
    declared: set[str] = set()
    for wheel in distributions(path=[str(site)]):
        add_with_dependencies(wheel, declared)
    return {
        module
        for module, owners in packages_distributions().items()
        if not module.startswith("_") and not declared & {normal(owner) for owner in owners}
    }


def add_with_dependencies(project: Distribution, declared: set[str]) -> None:
    declared.add(normal(project.name))
    for need in map(Requirement, project.requires or []):
        if normal(need.name) not in declared and (need.marker is None or need.marker.evaluate({"extra": ""})):
            add_with_dependencies(distribution(need.name), declared)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_wheels_are_imported_and_nothing_undeclared(installed: Path, variables: Mapping[str, str]) -> None:
    script = "import bon, bon_server; print(bon.__file__); print(bon_server.__file__)"
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, env=dict(variables), capture_output=True, text=True, cwd="/", timeout=RUN_S)
    assert done.stdout.split() == [
        str(installed / "bon" / "__init__.py"),
        str(installed / "bon_server" / "__init__.py"),
    ]
    assert {"torch", "transformers", "vllm", "trl", "duckdb"} <= undeclared_modules(installed)


def test_the_lines_of_the_readme(variables: Mapping[str, str], tmp_path: Path, port: str) -> None:
    test_readme.run_the_commands(tmp_path, port, variables)


MISSING = {
    "policy": (["serve", "--policy", ".", "--reward", "synthetic", "--log", "log"], "[cpu] or [cuda]"),
    "reward": (["serve", "--policy", "synthetic", "--reward", ".", "--log", "log"], "[cpu] or [cuda]"),
    "vllm reward": (["serve", "--policy", "synthetic", "--reward", "vllm:.", "--log", "log"], "[cpu] or [cuda]"),
    "publish": (
        ["serve", "--policy", "synthetic", "--reward", "synthetic", "--log", "log", "--publish", "s3://none/x"],
        "[publish]",
    ),
    "train": (["train", "--data", "none", "--policy", "/none", "--out", "out"], "[train]"),
    "demo": (["demo"], "[cpu] or [cuda]"),
}


@pytest.mark.parametrize(("words", "extra"), MISSING.values(), ids=MISSING.keys())
def test_an_extra_that_is_missing_is_named(
    words: list[str], extra: str, variables: Mapping[str, str], tmp_path: Path
) -> None:
    bon = [sys.executable, "-m", "bon_server.cli"]
    tiny_models.save_decoder_reward(tmp_path)
    done = subprocess.run(
        [*bon, *words], env=dict(variables), cwd=tmp_path, capture_output=True, text=True, timeout=RUN_S
    )
    assert done.returncode == 1, done.stderr
    (said,) = done.stderr.splitlines()
    assert f"install bon-server with its extra {extra}" in said

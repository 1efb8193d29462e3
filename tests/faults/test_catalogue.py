"""The catalogue is as large as it says, what it refers to is there, and its page says the same."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.faults.catalogue import CATALOGUE, tables

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "faults.md"
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->"
CASES = [f"{section.name}: {case}" for section in CATALOGUE for case in section.cases]
ELSEWHERE = [(one.name, test) for section in CATALOGUE for one in section.elsewhere for test in one.tests]


def test_there_are_enough_cases_and_each_is_another_one() -> None:
    assert len(set(CASES)) == len(CASES) >= 100
    assert all(section.cases and section.elsewhere for section in CATALOGUE)


@cache
def functions_of(file: str) -> set[str]:
    """Names of the test functions in a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize(("name", "test"), ELSEWHERE, ids=[f"{name}: {test}" for name, test in ELSEWHERE])
def test_what_is_tested_elsewhere_is(name: str, test: str) -> None:
    file, _, function = test.partition("::")
    assert function.startswith("test_") and function in functions_of(file)


def test_the_page_says_the_same() -> None:
    """`python -m tests.faults.write_page` makes it so."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    written, _, _ = rest.partition(END)
    assert written == tables()

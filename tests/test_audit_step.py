"""The check of dependencies: fails on a known hole, and says so where nothing can be known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def audit(environment: Path, service: str, tool: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"ADVISORIES": service, "PIP_AUDIT": tool}
    words = [str(ROOT / ".ci" / "audit"), str(environment)]
    return subprocess.run(words, env=variables, capture_output=True, text=True, timeout=60)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """One with this interpreter."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    return tmp_path


def test_without_the_service_it_says_that_nothing_is_known(environment: Path) -> None:
    done = audit(environment, "http://127.0.0.1:1/", "false")
    assert done.returncode == 0
    assert done.stdout.startswith("not audited: http://127.0.0.1:1/ cannot be reached")


@pytest.mark.parametrize(("tool", "code"), [("true", 0), ("false", 1)])
def test_with_it_the_tool_decides(environment: Path, tmp_path: Path, tool: str, code: int) -> None:
    (tmp_path / "advisories").write_text("{}")
    done = audit(environment, (tmp_path / "advisories").as_uri(), tool)
    assert (done.returncode, done.stdout) == (code, "")
